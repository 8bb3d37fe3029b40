// Rotary position embedding of one token's heads.
#pragma once
#include <stddef.h>

typedef struct rope_ops {
    // For each of `heads` rows of 2 * half + rest floats: (a, b) = the first two halves of x;
    // y = (a c - b s, b c + a s, rest of x), s = sign * sin; y += that where accumulate is set.
    // y may alias x exactly unless accumulating.
    void (*rotate)(float *y, const float *x, const float *cos, const float *sin, float sign, ptrdiff_t heads,
                   ptrdiff_t half, ptrdiff_t rest, int accumulate);
} rope_ops;
