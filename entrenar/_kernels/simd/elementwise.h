// Elementwise arithmetic on contiguous runs of floats.
#pragma once
#include <stddef.h>

typedef struct elementwise_ops {
    void (*add)(float *y, const float *a, const float *b, ptrdiff_t n);      // y = a + b
    void (*sub)(float *y, const float *a, const float *b, ptrdiff_t n);      // y = a - b
    void (*mul)(float *y, const float *a, const float *b, ptrdiff_t n);      // y = a * b
    void (*div)(float *y, const float *a, const float *b, ptrdiff_t n);      // y = a / b
    void (*equal)(float *y, const float *a, const float *b, ptrdiff_t n);    // y = 1 where a == b, else 0
    void (*add_scalar)(float *y, const float *a, float b, ptrdiff_t n);      // y = a + b
    void (*scale)(float *y, const float *a, float b, ptrdiff_t n);           // y = a * b
    void (*div_scalar)(float *y, const float *a, float b, ptrdiff_t n);      // y = a / b
    void (*equal_scalar)(float *y, const float *a, float b, ptrdiff_t n);    // y = 1 where a == b, else 0
    void (*scalar_sub)(float *y, float a, const float *b, ptrdiff_t n);      // y = a - b
    void (*scalar_div)(float *y, float a, const float *b, ptrdiff_t n);      // y = a / b
    void (*scale_add)(float *y, const float *a, float b, ptrdiff_t n);       // y += a * b
    void (*mul_add)(float *y, const float *a, const float *b, ptrdiff_t n);  // y += a * b
    void (*fill)(float *y, float a, ptrdiff_t n);                            // y = a
} elementwise_ops;
