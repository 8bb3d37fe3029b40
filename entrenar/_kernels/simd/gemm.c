// Packed matrix multiplication, after Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008,
// and Van Zee and van de Geijn, "BLIS", 2015. The operand that is a weight is dequantized while it is packed.
#include "simd/gemm.h"
#include "simd/transpose.h"

// Registers: MR x NV accumulators, NV of B and one broadcast of A: 31 of AVX-512's 32, 15 of the others' 16.
#if VLEN == 16
enum { MR = 14 };
#else
enum { MR = 6 };
#endif
enum { NV = 2, NR = NV * VLEN, CHUNK = 64 };

// ---------------------------------------------------------------- packing
// packed[p][i] = rows[i - i0][p], p < kc, for i in [i0, i0 + VLEN) of the micro-panel's width, of which `count` exist.
// A store of VLEN floats at i0 = 0 may run into the next p, which is written later; elsewhere only the `room` floats
// that are left of the width are stored.
INLINE void transpose_rows(float *packed, int width, int i0, const float *const *rows, int count, ptrdiff_t kc) {
    const int room = width - i0 < VLEN ? width - i0 : VLEN;
    const vf zero = {0};
    for (ptrdiff_t p = 0; p < kc; p += VLEN) {
        vf r[VLEN];
        const ptrdiff_t n = kc - p < VLEN ? kc - p : VLEN;
        if (n == VLEN) {
#pragma GCC unroll 16
            for (int i = 0; i < VLEN; i++) r[i] = i < count ? vload(rows[i] + p) : zero;
        } else {
            for (int i = 0; i < VLEN; i++) r[i] = i < count ? vload_n(rows[i] + p, n, 0.0f) : zero;
        }
        transpose(r);
        float *to = packed + p * width + i0;
        if (n == VLEN && (room == VLEN || (i0 == 0 && p + VLEN < kc))) {
#pragma GCC unroll 16
            for (int i = 0; i < VLEN; i++) vstore(to + i * width, r[i]);
        } else {
            for (int i = 0; i < n; i++) vstore_n(to + i * width, r[i], room);
        }
    }
}

static void pack_k_major(float *packed, int width, const matrix_view *matrix, ptrdiff_t first, int count, ptrdiff_t p0,
                         ptrdiff_t kc) {
    float dequantized[VLEN][CHUNK];
    const float *rows[VLEN];
    const weight_kernels *kernels = TIERED(weight_types)[matrix->type].kernels;
    for (ptrdiff_t p = 0; p < kc; p += CHUNK) {
        const ptrdiff_t n = kc - p < CHUNK ? kc - p : CHUNK;
        for (int i0 = 0; i0 < width; i0 += VLEN) {
            int have = count - i0;
            have = have < 0 ? 0 : have > VLEN ? VLEN : have;
            for (int i = 0; i < have; i++) {
                const ptrdiff_t row = first + i0 + i;
                if (matrix->type == WEIGHT_F32) {
                    rows[i] = (const float *)matrix->data + row * matrix->row_stride + p0 + p;
                } else {
                    kernels->dequantize_row(matrix, row, p0 + p, n, dequantized[i]);
                    rows[i] = dequantized[i];
                }
            }
            transpose_rows(packed + p * width, width, i0, rows, have, n);
        }
    }
}

// Whole micro-panels of every format have constant widths, for which memcpy is inlined
INLINE void copy(float *to, const float *from, int count) {
    switch (count) {
    case 6: memcpy(to, from, 6 * sizeof(float)); break;
    case 12: memcpy(to, from, 12 * sizeof(float)); break;
    case 14: memcpy(to, from, 14 * sizeof(float)); break;
    case NR: memcpy(to, from, NR * sizeof(float)); break;
    default: memcpy(to, from, (size_t)count * sizeof(float));
    }
}

void TIERED(gemm_pack)(float *packed, int width, const matrix_view *matrix, int k_major, ptrdiff_t first, int count,
                       ptrdiff_t p0, ptrdiff_t kc) {
    if (k_major) {
        pack_k_major(packed, width, matrix, first, count, p0, kc);
        return;
    }
    for (ptrdiff_t p = p0; p < p0 + kc; p++, packed += width) {
        if (matrix->type == WEIGHT_F32)
            copy(packed, (const float *)matrix->data + p * matrix->row_stride + first, count);
        else dequantize_row(matrix, p, first, count, packed);
        for (int i = count; i < width; i++) packed[i] = 0.0f;
    }
}

// ---------------------------------------------------------------- the micro-kernel
static void micro_kernel(float *c, ptrdiff_t ldc, const float *a, const float *b, ptrdiff_t kc, int m, int n,
                         int accumulate) {
    vf sum[MR][NV];
#pragma GCC unroll 14
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) sum[i][j] = (vf){0};
#pragma GCC unroll 4
    for (ptrdiff_t p = 0; p < kc; p++, a += MR, b += NR) {
        vf row[NV];
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) row[j] = vload(b + j * VLEN);
#pragma GCC unroll 14
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
            for (int j = 0; j < NV; j++) sum[i][j] += a[i] * row[j];
    }
    if (m == MR && n == NR) {
#pragma GCC unroll 14
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
            for (int j = 0; j < NV; j++) {
                float *to = c + i * ldc + j * VLEN;
                vstore(to, accumulate ? vload(to) + sum[i][j] : sum[i][j]);
            }
        return;
    }
    float edge[MR * NR];
#pragma GCC unroll 14
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) vstore(edge + i * NR + j * VLEN, sum[i][j]);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) c[i * ldc + j] = accumulate ? c[i * ldc + j] + edge[i * NR + j] : edge[i * NR + j];
}

static const gemm_format fp32 = {
    .mr = MR,
    .nr = NR,
    .packmr = MR,
    .block = 1,
    .block_words = 1,
    .pack_a = TIERED(gemm_pack),
    .pack_b = TIERED(gemm_pack),
    .micro_kernel = micro_kernel,
};
const gemm_ops TIERED(gemm_table) = {
    .format = {[GEMM_FP32] = &fp32,
               [GEMM_INT16] = &TIERED(gemm_int16),
               [GEMM_INT8] = &TIERED(gemm_int8),
               [GEMM_STEPS] = &TIERED(gemm_steps),
               [GEMM_HALF_STEPS] = &TIERED(gemm_half_steps)},
};
