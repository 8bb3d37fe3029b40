// This tier's dispatch table.
#include "simd/simd.h"
#include "simd/vec.h"

#define SIMD_EXTERN(family) extern const family##_ops TIERED(family##_table);
SIMD_FAMILIES(SIMD_EXTERN)

#define QUOTE_(x) #x
#define QUOTE(x) QUOTE_(x)
#define SIMD_POINTER(family) .family = &TIERED(family##_table),
const simd_table TIERED(simd_table) = {.tier = QUOTE(TIER), .vector_floats = VLEN, SIMD_FAMILIES(SIMD_POINTER)};
