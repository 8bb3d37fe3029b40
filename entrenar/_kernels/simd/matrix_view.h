// A matrix (rows x columns) as kernels read it: a pointer with a weight type, whatever that type is.
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct matrix_view {
    int type;              // a row of weight_types
    const void *data;      // first row
    ptrdiff_t row_stride;  // between rows: elements for types that are not quantized, bytes for those that are
    ptrdiff_t columns;     // of the whole matrix; a multiple of the block size
    // of ggml's blocks: rows of half a head where the rows of a head's halves are stored in turn (0, half, 1, half + 1,
    // ...); 0 where they are stored in order
    ptrdiff_t half_head;
    // of types whose fp32 scales are an array of their own:
    const float *scales;              // of each block; where quantized_scales is set, of each scale_block blocks
    const uint8_t *quantized_scales;  // double quantization: 8 bits for the scale of each block, else NULL
    const float *scale_map;           // the 256 values of quantized_scales
    float scale_offset;               // what was subtracted from every scale before
} matrix_view;

// Where a row is stored, counted in rows
static inline ptrdiff_t stored_row(const matrix_view *s, ptrdiff_t row) {
    const ptrdiff_t half = s->half_head;
    if (half == 0) return row;
    const ptrdiff_t within = row % (2 * half);
    return row - within + (within < half ? 2 * within : 2 * (within - half) + 1);
}
