// Elementwise arithmetic on contiguous runs of floats.
#pragma once
#include <stddef.h>

typedef struct elementwise_ops {
    void (*add)(float *y, const float *a, const float *b, ptrdiff_t n);       // y = a + b
    void (*sub)(float *y, const float *a, const float *b, ptrdiff_t n);       // y = a - b
    void (*mul)(float *y, const float *a, const float *b, ptrdiff_t n);       // y = a * b
    void (*div)(float *y, const float *a, const float *b, ptrdiff_t n);       // y = a / b
    void (*add_scalar)(float *y, const float *a, float b, ptrdiff_t n);       // y = a + b
    void (*scale)(float *y, const float *a, float b, ptrdiff_t n);            // y = a * b
    void (*scalar_div)(float *y, float a, const float *b, ptrdiff_t n);       // y = a / b
    void (*scale_add)(float *y, const float *a, float b, ptrdiff_t n);        // y += a * b
    void (*mul_add)(float *y, const float *a, const float *b, ptrdiff_t n);   // y += a * b
} elementwise_ops;
