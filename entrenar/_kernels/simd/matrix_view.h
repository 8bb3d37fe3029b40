// A matrix (rows x columns) as kernels read it: a pointer with a weight type, whatever that type is.
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct matrix_view {
    int type;              // a row of weight_types
    const void *data;      // first row
    ptrdiff_t row_stride;  // between rows: elements for types that are not quantized, bytes for those that are
    ptrdiff_t columns;     // of the whole matrix; a multiple of the block size
    // of types whose fp32 scales are an array of their own:
    const float *scales;              // of each block; where quantized_scales is set, of each scale_block blocks
    const uint8_t *quantized_scales;  // double quantization: 8 bits for the scale of each block, else NULL
    const float *scale_map;           // the 256 values of quantized_scales
    float scale_offset;               // what was subtracted from every scale before
} matrix_view;
