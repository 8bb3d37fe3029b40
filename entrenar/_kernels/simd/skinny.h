// Skinny products: operands that are used once or lie in cache already, so that nothing is packed.
#pragma once
#include <stddef.h>

enum { SKINNY_ONES = 64 };  // rows of c that `skinny_ones` as beta adds to
static const float skinny_ones[SKINNY_ONES] = {[0 ... SKINNY_ONES - 1] = 1.0f};

// c (m, n) = diag(beta) c + a (m, k) b (k, n); beta NULL: c is not read. Element (i, p) of a is at a + i rs_a + p cs_a;
// rows of b are padded to whole vectors.
typedef struct skinny_args {
    float *c;
    const float *a, *b, *beta;
    ptrdiff_t ldc, rs_a, cs_a, ldb, m, n, k;
} skinny_args;

typedef struct skinny_ops {
    void (*multiply)(const skinny_args *s);
} skinny_ops;
