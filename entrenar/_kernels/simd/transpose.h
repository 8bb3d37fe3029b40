// A matrix of VLEN x VLEN 32-bit words is transposed in registers.
#pragma once
#include "simd/vec.h"

#if VLEN == 16
static const vi LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#elif VLEN == 8
static const vi LANE = {0, 1, 2, 3, 4, 5, 6, 7};
#else
static const vi LANE = {0, 1, 2, 3};
#endif
// Eklundh's exchange: the blocks of s lanes off the diagonal change places between rows i and i + s; s is a constant
INLINE void exchange(vf r[VLEN], int s) {
    const vi low = LANE + (((LANE & s) != 0) & (VLEN - s)), high = low + s;
#pragma GCC unroll 16
    for (int i = 0; i < VLEN; i++)
        if (!(i & s)) {
            const vf upper = r[i], lower = r[i + s];
            r[i] = __builtin_shuffle(upper, lower, low);
            r[i + s] = __builtin_shuffle(upper, lower, high);
        }
}
INLINE void transpose(vf r[VLEN]) {
    exchange(r, 1);
    exchange(r, 2);
#if VLEN >= 8
    exchange(r, 4);
#endif
#if VLEN >= 16
    exchange(r, 8);
#endif
}
