// What a core can do at most: multiply-adds in registers, and streams through memory.
#pragma once
#include <stddef.h>

typedef struct peak_ops {
    // `rounds` times the same independent multiply-adds; the operations that were done, a multiply-add two.
    // NULL where the tier has no such instruction.
    double (*fp32)(ptrdiff_t rounds);
    double (*int16)(ptrdiff_t rounds);  // into int32
    double (*int8)(ptrdiff_t rounds);   // into int32
    // n floats of each array, n a multiple of 64 and arrays aligned to vectors
    double (*read)(const float *y, ptrdiff_t n);                           // the sum of some of y
    void (*update)(float *x, const float *y, ptrdiff_t n);                 // x = x / 2 + y
    void (*triad)(float *x, const float *y, const float *z, ptrdiff_t n);  // x = y + z / 2
} peak_ops;
