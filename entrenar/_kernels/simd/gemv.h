// gemv: y (m, n) = x (m, k) W (n, k)^T for up to GEMV_ROWS rows of x. W streams through once, dequantized in registers.
#pragma once
#include <stddef.h>
#include "simd/matrix_view.h"

enum { GEMV_ROWS = 4 };   // rows of x up to which gemv beats packing
enum { GEMV_STEP = 32 };  // columns of x that share a scale; every quantized weight type has whole steps in a row

// y[r][first + i] = x[r] . W[first + i], i < count, r < m
typedef struct gemv_args {
    float *y;
    const float *x;  // of multiply_integer: m rows of gemv_words(k) words, each what `quantize` makes of a row
    const matrix_view *w;
    ptrdiff_t ldy, ldx, first, count, k;
    int m, accumulate;  // multiply_integer does not accumulate
} gemv_args;

// 32-bit words of a quantized row of x: k values, two a word; a scale, a sum and two halves of it for each step; then k
// values again, two a word, with as many sums and a scale for 256 columns; whole cache lines
static inline ptrdiff_t gemv_words(ptrdiff_t k) { return (k + 7 * (k / GEMV_STEP) + k / 256 + 15) / 16 * 16; }

typedef struct gemv_ops {
    void (*multiply)(const gemv_args *g);
    // x and W in 16-bit integers, for the quantized weight types; both NULL where the tier lacks them
    void (*quantize)(float *words, const float *x, ptrdiff_t k);
    void (*multiply_integer)(const gemv_args *g);
} gemv_ops;
