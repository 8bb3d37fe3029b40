// The traits table of weight types, after ggml's type traits: a row has every property of a type. No other place has
// the size or the name of one, and the order of the rows means nothing.
#pragma once
#include "simd/gemv.h"
#include "simd/matrix_view.h"

// the rows that are looked up by name; the others are selected by their columns
enum { WEIGHT_F32 = 0, WEIGHT_BF16 = 1, WEIGHT_F16 = 2 };
enum { INT16_LIMIT = 4095 };  // the largest magnitude of int16's values, and of what 16-bit products take for W
// what quantize_row and check_row found, combined with |
enum { QUANTIZE_OK = 0, QUANTIZE_NOT_FINITE = 1, QUANTIZE_SCALE_OVERFLOW = 2, QUANTIZE_OUT_OF_RANGE = 4 };

// What a tier makes of a type (weights/<type>.c)
typedef struct weight_kernels {
    // out[0 .. count) = columns [k0, k0 + count) of one row, any k0 and count within it; fastest at multiples of 16
    void (*dequantize_row)(const matrix_view *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, float *out);
    // one row of whole blocks from fp32, `scales` one a block where the type has such; NULL where it is not quantized
    int (*quantize_row)(void *values, float *scales, const float *x, ptrdiff_t columns);
    // whether the quantized values of a row can be used as they are; NULL where all can
    int (*check_row)(const void *values, ptrdiff_t columns);
    void (*gemv)(const gemv_args *g);
    void (*gemv_integer)(const gemv_args *g);  // NULL where the type or the tier has none
    // columns [k0, k0 + count) of one row, whole steps, as integers: value * scale + minimum, both of each step, or of
    // each half of one where the type has half_steps; NULL where gemv_integer is
    void (*integers)(const matrix_view *s, ptrdiff_t stored_row, ptrdiff_t k0, ptrdiff_t count, int16_t *values,
                     float *scales, float *minima);
    int x_form;  // of the rows of x that gemv_integer multiplies: GEMV_STEPS ...
} weight_kernels;

typedef struct weight_type {
    const char *name;       // GGUF's in lower case where files have the type; NULL ends the table
    const char *gguf_name;  // NULL: no GGUF file has it
    int gguf_type;          // its number there, -1: none
    int is_quantized;       // blocks of integers with scales
    int bits;               // of one value; precision "medium" packs up to 8 to int8
    int block;              // columns of a block
    int block_bytes;        // its values, and the scales among them
    int half_steps;         // 16 columns have a scale of their own, else 32 or more
    int has_scales;         // an fp32 scale for each block, in an array of its own
    int scale_block;        // scales that share one when they are quantized to 8 bits; 0: they are not
    int int16_panels;       // values and scales are what an int16 panel of B holds: packing moves them as they are
    const weight_kernels *kernels;
} weight_type;

static inline matrix_view f32_view(const float *data, ptrdiff_t row_stride, ptrdiff_t columns) {
    return (matrix_view){.type = WEIGHT_F32, .data = data, .row_stride = row_stride, .columns = columns};
}

#ifdef TIER
#include "simd/vec.h"

extern const weight_type TIERED(weight_types)[];

INLINE void dequantize_row(const matrix_view *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, float *out) {
    TIERED(weight_types)[s->type].kernels->dequantize_row(s, row, k0, count, out);
}
#endif
