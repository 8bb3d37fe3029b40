// Tiles of attention: copies into padded scratch and the two softmax steps.
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

// The scores of a q tile (rows) and a kv tile (keys), transposed.
typedef struct attention_tile {
    float *scores;                 // (keys, ATTENTION_ROWS)
    const int32_t *start, *limit;  // first and last key that each row sees
    ptrdiff_t keys, rows;          // rows up to whole vectors
    int32_t first_key;
    int masked;     // a row does not see every key
    float softcap;  // scores are bounded to softcap tanh(score / softcap); 0: they are not
} attention_tile;

typedef struct attention_ops {
    // tile (rows, ld) = x, columns padded with zeros to whole vectors
    void (*gather)(float *tile, ptrdiff_t ld, const float *x, const attention_rows *view);
    // Ask for `rows` rows of `dim` floats, `stride` floats apart
    void (*prefetch)(const float *x, const attention_rows *view);
    // tile (dim, ld) = scale * x transposed, columns padded with zeros to whole vectors
    void (*gather_transposed)(float *tile, ptrdiff_t ld, const float *x, const attention_rows *view, float scale);
    // x = tile (rows, ld) with row i times factor[i] (NULL: 1), or x += that where accumulate is set
    void (*scatter)(float *x, const float *tile, ptrdiff_t ld, const float *factor, const attention_rows *view,
                    int accumulate);
    // One online softmax step: scores, bounded, become exp(score - row_max), 0 where first_key + key lies outside
    // [start[row], limit[row]]; row_max and row_sum move on; correction[row] is what earlier sums and outputs must be
    // multiplied with.
    void (*softmax_step)(const attention_tile *t, float *row_max, float *row_sum, float *correction);
    // scores, bounded, become p = exp(score - row_max) * inverse_row_sum, and dp becomes ds = scale * p * (dp - delta),
    // times the slope of the bound
    void (*softmax_backward)(const attention_tile *t, float *dp, const float *row_max, const float *inverse_row_sum,
                             const float *delta, float scale);
    // dot[i] = a row i . b row i, both (rows, ld) padded with zeros to whole vectors
    void (*row_dots)(float *dot, const float *a, const float *b, ptrdiff_t ld, ptrdiff_t rows, ptrdiff_t dim);
} attention_ops;
