// Packed matrix multiplication: panels, the register tile, and the dot products of a few rows.
//
// A panel holds lanes of one operand (rows of the left, columns of the right), the contraction running down it; a tile is
// C[rows][nr] (+)= left panel^T right panel. A format says what a panel is made of: fp32, or integers whose
// blocks of GEMM_BLOCK steps share a scale (gemm_integer.c). Any source can be packed to any format.
#pragma once
#include <stddef.h>
#include "simd/weights/types.h"

enum { GEMM_BLOCK = 64 };  // steps of the contraction that share a scale
enum { GEMM_FP32 = 0, GEMM_INT16 = 1, GEMM_INT8 = 2, GEMM_FORMATS = 3 };

enum { GEMM_ONES = 64 };  // rows whose old values `skinny` can keep by gemm_ones
static const float gemm_ones[GEMM_ONES] = {[0 ... GEMM_ONES - 1] = 1.0f};

typedef void gemm_packer_function(float *out, int lanes, const matrix_view *s, ptrdiff_t first, int count,
                                  ptrdiff_t start, ptrdiff_t depth);
typedef gemm_packer_function *gemm_packer;

typedef struct gemm_format {
    int mr;                  // of a tile; 0 where the tier lacks the format
    int packmr, nr;          // of a panel
    int block, block_words;  // `block` steps of the contraction take block_words 32-bit words a lane
    // left panel: lane l, step p = source[first + l][start + p] (rows) or source[start + p][first + l] (columns)
    gemm_packer pack_a;
    gemm_packer pack_a_transposed;
    gemm_packer pack_b_transposed;
    gemm_packer pack_b;
    // c[rows][columns] (+)= sum_p left[p][row] right[p][column], rows <= .rows, columns <= nr
    void (*micro_kernel)(float *c, ptrdiff_t ldc, const float *left, const float *right, ptrdiff_t depth, int rows,
                         int columns, int accumulate);
} gemm_format;

typedef struct gemm_ops {
    const gemm_format *format[GEMM_FORMATS];
    // out[p][lane] = source[start + p][first + lane], p < depth; lanes from count on are zero
    gemm_packer pack_columns;
    // c (m, n) = a (m, k) b (k, n), plus keep[i] times row i of the old c unless keep is NULL. Element (i, p) of a is at
    // a + i * a_row + p * a_column; rows of b are padded to whole vectors.
    void (*skinny)(float *c, ptrdiff_t ldc, const float *a, ptrdiff_t a_row, ptrdiff_t a_column, const float *b,
                   ptrdiff_t ldb, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, const float *keep);
} gemm_ops;

#ifdef TIER
void TIERED(gemm_skinny)(float *c, ptrdiff_t ldc, const float *a, ptrdiff_t a_row, ptrdiff_t a_column, const float *b,
                         ptrdiff_t ldb, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, const float *keep);
extern const gemm_format TIERED(gemm_int16), TIERED(gemm_int8);
// fp32 panels, out[p][lane]; lanes from count on are zero
gemm_packer_function TIERED(gemm_pack_rows), TIERED(gemm_pack_columns);
#endif
