// gemv: y (m, n) = x (m, k) W (n, k)^T for few rows of x. W streams through once, dequantized in registers.
#pragma once
#include <stddef.h>
#include "simd/matrix_view.h"

enum { GEMV_PASS = 8 };  // rows of x that read W together
// rows of x up to which gemv beats packing, and where x and W are planes of bytes
enum { GEMV_ROWS = 8, GEMV_PLANES_ROWS = 20 };
enum { GEMV_STEP = 32 };  // columns of W that are read at once; every quantized weight type has whole steps in a row

// y[r][first + i] = x[r] . W[first + i], i < count, r < m
typedef struct gemv_args {
    float *y;
    const float *x;  // of multiply_integer: rows that `quantize` makes for w's form, ldx is gemv_words(k)
    const matrix_view *w;
    ptrdiff_t ldy, ldx, first, count, k;
    int m, accumulate;  // multiply_integer does not accumulate
} gemv_args;

// What `quantize` makes of a row of x; a set of them has the bits 1 << form. The last two are of blocks of 256 columns,
// as two planes of bytes, in the order in which types unpack theirs.
enum {
    GEMV_STEPS = 0,     // 16-bit integers in order, a scale for each block of 256 columns
    GEMV_SIXTEENS = 1,  // vector i of a block has columns 16 i .. 16 i + 15, 64 + 16 i .., 128 + 16 i .., 192 + 16 i ..
    GEMV_EIGHTS = 2,  // vectors 2 h and 2 h + 1: the first and the second eights of sixteens 4 h, 4 h + 8, 4 h + 1, ...
};
// 32-bit words of a quantized row of x, whichever its forms, in whole cache lines: k values, two a word, a scale, a sum
// and two halves of it for each step; then k values in either order, a bias for each 4 columns, a sum for each step and
// a scale for 256 columns
static inline ptrdiff_t gemv_words(ptrdiff_t k) {
    return (k / 2 + k + k / 4 + 5 * (k / GEMV_STEP) + k / 256 + 15) / 16 * 16;
}

typedef struct gemv_ops {
    void (*multiply)(const gemv_args *g);
    // x and W in 16-bit integers, for the quantized weight types; both NULL where the tier lacks them
    void (*quantize)(float *words, const float *x, ptrdiff_t k, int forms);
    void (*multiply_integer)(const gemv_args *g);
} gemv_ops;
