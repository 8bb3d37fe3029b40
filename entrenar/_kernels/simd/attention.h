// Tiles of attention: copies into padded scratch, one register-blocked matmul, and the two softmax steps.
// A score tile is transposed, (keys, rows): softmax statistics are then lanes of vectors, and K and V need no packing.
#pragma once
#include <stddef.h>
#include <stdint.h>

// Query rows and keys of one tile; both are multiples of every tier's vector width.
enum { ATTENTION_ROWS = 64, ATTENTION_KEYS = 64 };

// `rows` rows of `dim` floats starting at row `first`; row r is at x + r / group * stride + r % group * dim.
// group = query heads of a kv head stacks them as rows; group = 1 is a plain matrix with a row stride.
typedef struct attention_rows {
    ptrdiff_t first, rows, group, stride, dim;
} attention_rows;

typedef struct attention_ops {
    // tile (rows, ld) = x, columns padded with zeros to whole vectors
    void (*gather)(float *tile, ptrdiff_t ld, const float *x, const attention_rows *view);
    // tile (dim, ld) = scale * x transposed, columns padded with zeros to whole vectors
    void (*gather_transposed)(float *tile, ptrdiff_t ld, const float *x, const attention_rows *view, float scale);
    // x = tile (rows, ld) with row i times factor[i] (NULL: 1), or x += that where accumulate is set
    void (*scatter)(float *x, const float *tile, ptrdiff_t ld, const float *factor, const attention_rows *view,
                    int accumulate);
    // One online softmax step: scores (keys, ROWS) become exp(score - maximum), 0 where first_key + key > limit[row];
    // maximum and sum move on; keep[row] is what earlier sums and outputs must be multiplied with.
    void (*softmax_step)(float *scores, float *maximum, float *sum, float *keep, const int32_t *limit,
                         int32_t first_key, ptrdiff_t keys, ptrdiff_t rows, int masked);
    // scores become p = exp(score - maximum) * inverse_sum, and dp becomes scale * p * (dp - delta)
    void (*softmax_backward)(float *scores, float *dp, const float *maximum, const float *inverse_sum,
                             const float *delta, float scale, const int32_t *limit, int32_t first_key, ptrdiff_t keys,
                             ptrdiff_t rows, int masked);
    // dot[i] = a row i . b row i, both (rows, ld) padded with zeros to whole vectors
    void (*row_dots)(float *dot, const float *a, const float *b, ptrdiff_t ld, ptrdiff_t rows, ptrdiff_t dim);
} attention_ops;
