// Softmax and cross-entropy of one row.
#pragma once
#include <stddef.h>

typedef struct softmax_ops {
    float (*log_sum_exp)(const float *x, ptrdiff_t n);       // ln sum e^x, through the maximum
    void (*softmax)(float *y, const float *x, ptrdiff_t n);  // y = e^x / sum e^x
    void (*softmax_backward)(float *dx, const float *dy, const float *y, ptrdiff_t n,
                             int accumulate);                    // y (dy - sum dy y)
    void (*log_softmax)(float *y, const float *x, ptrdiff_t n);  // y = x - ln sum e^x
    void (*log_softmax_backward)(float *dx, const float *dy, const float *y, ptrdiff_t n,
                                 int accumulate);  // dy - e^y sum dy
    // dx (+)= scale (e^(x - lse) - onehot(target)); dx may be x
    void (*cross_entropy_backward)(float *dx, const float *x, float lse, ptrdiff_t target, float scale, ptrdiff_t n,
                                   int accumulate);
} softmax_ops;
