// Quantization of weight rows to 4 bits (NF4, Q4_0, Q4_1), 8 (Q8_0) or 16 (INT16), of NF4's absmax to 8;
// dequantization of any weight type.
#pragma once
#include "matrix_view.h"

enum { QUANTIZE_OK = 0, QUANTIZE_NOT_FINITE = 1, QUANTIZE_SCALE_OVERFLOW = 2 };  // combined with |

typedef struct quantize_ops {
    // One row of `columns` floats (a multiple of the block size) to packed values; QUANT_* tells what was wrong in it.
    int (*nf4)(uint8_t *values, float *absmax, const float *x,
               ptrdiff_t columns);                                    // columns/2 bytes, columns/64 floats
    int (*q4_0)(uint8_t *blocks, const float *x, ptrdiff_t columns);  // columns/32 * 18 bytes
    int (*q4_1)(uint8_t *blocks, const float *x, ptrdiff_t columns);  // columns/32 * 20 bytes
    int (*q8_0)(uint8_t *blocks, const float *x, ptrdiff_t columns);  // columns/32 * 34 bytes
    int (*int16)(int16_t *values, float *scales, const float *x,
                 ptrdiff_t columns);  // `columns` values, columns/64 scales
    // count <= 256 absmax values to 8 bits: second = max |absmax - offset|; values: nearest of the 256
    // sorted map values
    void (*absmax)(uint8_t *values, float *second, const float *absmax, float offset, const float *map,
                   ptrdiff_t count);
    // QUANTIZE_NOT_FINITE where one of ggml's blocks, `size` bytes each, has a scale or (where it has one) minimum that
    // is not finite
    int (*ggml_scales)(const uint8_t *blocks, ptrdiff_t count, ptrdiff_t size, int minimum);
    void (*dequantize_row)(const matrix_view *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count,
                           float *out);  // dequantize_row
} quantize_ops;
