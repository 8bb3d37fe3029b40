// GEMM: the formats of packed micro-panels, how they are packed, their micro-kernels.
//
// C (m, n) (+)= A (m, k) B (k, n). A micro-panel of packed A holds MR rows of A, one of packed B NR columns of B; the
// contraction runs down it. The micro-kernel multiplies one of each to an MR x NR tile of C. A format says what a
// micro-panel is made of: fp32, or integers, GEMM_BLOCK steps of which share a scale (gemm_integer.c). A matrix of any
// weight type is packed to any format.
#pragma once
#include <stddef.h>
#include "simd/weights/types.h"

enum { GEMM_BLOCK = 64 };  // steps of the contraction that share a scale
// STEPS and HALF_STEPS (gemm_steps.c): int16, B a quantized weight along its rows, with a scale for each GEMV_STEP
// columns, or for each half of them
enum { GEMM_FP32 = 0, GEMM_INT16 = 1, GEMM_INT8 = 2, GEMM_STEPS = 3, GEMM_HALF_STEPS = 4, GEMM_FORMATS = 5 };

// Steps [p0, p0 + kc) of the contraction for `count` rows of A or columns of B from `first` on, the rest of `width`
// zero. k_major: the contraction runs along the rows of the matrix as it is stored; else down its columns.
typedef void gemm_packer(float *packed, int width, const matrix_view *matrix, int k_major, ptrdiff_t first, int count,
                         ptrdiff_t p0, ptrdiff_t kc);

typedef struct gemm_format {
    int mr, nr;              // rows and columns of the micro-kernel's tile; mr is 0 where the tier lacks the format
    int packmr;              // rows in a micro-panel of A: mr, or that rounded up to whole vectors
    int block, block_words;  // `block` steps of the contraction take block_words 32-bit words in each row or column
    gemm_packer *pack_a, *pack_b;
    // c (m, n) (+)= the product of two micro-panels of kc steps, m <= mr, n <= nr
    void (*micro_kernel)(float *c, ptrdiff_t ldc, const float *packed_a, const float *packed_b, ptrdiff_t kc, int m,
                         int n, int accumulate);
} gemm_format;

// One product of a grouped GEMM: C (m, n), contiguous, and its B
typedef struct gemm_operand_b {
    float *c;
    const matrix_view *b;
    ptrdiff_t n;
} gemm_operand_b;

typedef struct gemm_ops {
    const gemm_format *format[GEMM_FORMATS];
} gemm_ops;

#ifdef TIER
extern const gemm_format TIERED(gemm_int16), TIERED(gemm_int8), TIERED(gemm_steps), TIERED(gemm_half_steps);
gemm_packer TIERED(gemm_pack);  // fp32: packed[step][row of A or column of B]
#endif
