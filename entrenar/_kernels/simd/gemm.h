// Packed matrix multiplication: panels, the register tile, and the dot products of a few rows.
//
// A panel holds `lanes` rows of one operand, the contraction running down it: panel[p][lane]. Operand A is packed in
// panels of MR lanes, operand B in panels of NR; a tile is C[MR][NR] (+)= A panel^T B panel.
#pragma once
#include <stddef.h>
#include "simd/source.h"

enum { GEMM_FEW_ROWS = 4 };  // up to here few_rows beats packing

typedef struct gemm_ops {
    int mr, nr;  // lanes of an A and of a B panel on this tier
    // out[p][lane] = source[first + lane][start + p], p < depth; lanes from count on are zero
    void (*pack_rows)(float *out, int lanes, const weight_source *s, ptrdiff_t first, int count, ptrdiff_t start, ptrdiff_t depth);
    // out[p][lane] = source[start + p][first + lane], p < depth; lanes from count on are zero
    void (*pack_columns)(float *out, int lanes, const weight_source *s, ptrdiff_t first, int count, ptrdiff_t start, ptrdiff_t depth);
    // c[rows][columns] (+)= sum_p a[p][row] b[p][column], rows <= mr, columns <= nr
    void (*tile)(float *c, ptrdiff_t ldc, const float *a, const float *b, ptrdiff_t depth, int rows, int columns, int accumulate);
    // y[r][first + i] (+)= x[r] . source[first + i], i < count, r < rows <= GEMM_FEW_ROWS
    void (*few_rows)(float *y, ptrdiff_t ldy, const float *x, ptrdiff_t ldx, int rows, const weight_source *s, ptrdiff_t first, ptrdiff_t count, ptrdiff_t k, int accumulate);
} gemm_ops;
