// Float64 accumulators: DLEN doubles in a `vd`, as wide as a register of the tier.
#pragma once
#include "simd/vec.h"

#define DLEN (VLEN / 2)

typedef double vd __attribute__((vector_size(4 * VLEN)));
typedef float vf_half __attribute__((vector_size(2 * VLEN), aligned(4), may_alias));

// DLEN floats as doubles. (Converting a whole vf at once makes gcc 12 go through the stack.)
INLINE vd vload_double(const float *p) { return __builtin_convertvector(*(const vf_half *)p, vd); }
