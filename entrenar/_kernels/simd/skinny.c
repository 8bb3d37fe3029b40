// Products of operands that are used once or lie in cache already: attention's tiles, the narrow sides of LoRA. Nothing is
// packed: elements of the left operand are broadcast from where they lie, rows of the right one are vectors as they are.
#include "simd/gemm.h"
#include "simd/vec.h"

// rows x vectors accumulators: 12 of 16 registers, or 24 of 32
#if VLEN == 16 || defined(__aarch64__)
#define MR 12
#else
#define MR 6
#endif
#define NR 2

// One register block; `rows` and `vectors` are constants at every call. n is how many columns of c exist.
INLINE void block(int rows, int vectors, float *c, ptrdiff_t ldc, const float *a, ptrdiff_t a_row, ptrdiff_t a_column,
                  const float *b, ptrdiff_t ldb, ptrdiff_t n, ptrdiff_t k, const float *keep) {
    vf sum[MR][NR];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) sum[i][j] = (vf){0};
    for (ptrdiff_t p = 0; p < k; p++, a += a_column, b += ldb) {
        vf column[NR];
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) column[j] = vload(b + j * VLEN);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            vf x = vset(a[i * a_row]);
#pragma GCC unroll 2
            for (int j = 0; j < vectors; j++) sum[i][j] += x * column[j];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) {
            float *out = c + i * ldc + j * VLEN;
            ptrdiff_t left = n - j * VLEN;
            if (left >= VLEN) vstore(out, keep ? vload(out) * keep[i] + sum[i][j] : sum[i][j]);
            else vstore_n(out, keep ? vload_n(out, left, 0) * keep[i] + sum[i][j] : sum[i][j], left);
        }
}

void TIERED(gemm_skinny)(float *c, ptrdiff_t ldc, const float *a, ptrdiff_t a_row, ptrdiff_t a_column, const float *b,
                         ptrdiff_t ldb, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, const float *keep) {
    for (ptrdiff_t j = 0; j < n; j += NR * VLEN) {
        ptrdiff_t i = 0;
#define BLOCKS(rows)                                                                                                   \
    for (; i + rows <= m; i += rows) {                                                                                 \
        if (n - j > VLEN)                                                                                              \
            block(rows, NR, c + i * ldc + j, ldc, a + i * a_row, a_row, a_column, b + j, ldb, n - j, k,                \
                  keep ? keep + i : NULL);                                                                             \
        else                                                                                                           \
            block(rows, 1, c + i * ldc + j, ldc, a + i * a_row, a_row, a_column, b + j, ldb, n - j, k,                 \
                  keep ? keep + i : NULL);                                                                             \
    }
        BLOCKS(MR)
        BLOCKS(4)
        BLOCKS(2)
        BLOCKS(1)
    }
}
