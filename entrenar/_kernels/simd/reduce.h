// Sums and maxima over a contiguous run, or over the rows of a strided block of rows.
#pragma once
#include <stddef.h>

typedef struct reduce_ops {
    double (*sum)(const float *x, ptrdiff_t n);
    float (*max)(const float *x, ptrdiff_t n);  // NaN if any is NaN; -inf if n == 0
    // acc[i] += x[0][i] + x[1][i] + ... over `rows` rows that start `stride` floats apart, for i < n
    void (*sum_rows)(double *acc, const float *x, ptrdiff_t rows, ptrdiff_t stride, ptrdiff_t n);
    // acc[i] = max(acc[i], x[0][i], x[1][i], ...); NaN if any is NaN
    void (*max_rows)(double *acc, const float *x, ptrdiff_t rows, ptrdiff_t stride, ptrdiff_t n);
} reduce_ops;
