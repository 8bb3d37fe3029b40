// Skinny products: attention's tiles, the low-rank sides of LoRA. Elements of A are broadcast from where they lie, rows
// of B are vectors as they are.
#include "simd/skinny.h"
#include "simd/vec.h"

// MR x NV accumulators: 12 of 16 registers, or 24 of 32
#if VLEN == 16 || defined(__aarch64__)
enum { MR = 12 };
#else
enum { MR = 6 };
#endif
enum { NV = 2 };

// Rows [i, i + rows) of c and `vectors` vectors of its columns from j on; `rows` and `vectors` are always constants
INLINE void block(skinny_args s, ptrdiff_t i0, ptrdiff_t j0, int rows, int vectors) {
    const ptrdiff_t ldc = s.ldc, rs_a = s.rs_a, cs_a = s.cs_a, ldb = s.ldb, n = s.n - j0, k = s.k;
    const float *a = s.a + i0 * rs_a, *b = s.b + j0, *beta = s.beta ? s.beta + i0 : NULL;
    float *c = s.c + i0 * ldc + j0;
    vf sum[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) sum[i][j] = (vf){0};
    for (ptrdiff_t p = 0; p < k; p++, a += cs_a, b += ldb) {
        vf row[NV];
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) row[j] = vload(b + j * VLEN);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            vf x = vset(a[i * rs_a]);
#pragma GCC unroll 2
            for (int j = 0; j < vectors; j++) sum[i][j] += x * row[j];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < vectors; j++) {
            float *to = c + i * ldc + j * VLEN;
            const ptrdiff_t left = n - j * VLEN;
            if (left >= VLEN) vstore(to, beta ? vload(to) * beta[i] + sum[i][j] : sum[i][j]);
            else vstore_n(to, beta ? vload_n(to, left, 0) * beta[i] + sum[i][j] : sum[i][j], left);
        }
}

// Blocks of `rows` rows from row i on as long as there are so many; the row after them
INLINE ptrdiff_t blocks(skinny_args s, ptrdiff_t i, ptrdiff_t j, int rows) {
    for (; i + rows <= s.m; i += rows) {
        if (s.n - j > VLEN) block(s, i, j, rows, 2);
        else block(s, i, j, rows, 1);
    }
    return i;
}

#if VLEN > 4
// Products of at most NARROW columns: short vectors, of which a core adds more in a cycle; lane by lane the same sums
enum { NARROW = 4 };
typedef float narrow __attribute__((vector_size(4 * NARROW)));

INLINE narrow narrow_load(const float *p, ptrdiff_t lanes) {
    narrow v = {0};
    memcpy(&v, p, lanes * sizeof(float));
    return v;
}

INLINE void narrow_block(skinny_args s, ptrdiff_t i0, int rows) {
    const ptrdiff_t rs_a = s.rs_a;
    const float *a = s.a + i0 * rs_a, *b = s.b;
    narrow sum[MR];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) sum[i] = (narrow){0};
    for (ptrdiff_t p = 0; p < s.k; p++, a += s.cs_a, b += s.ldb) {
        narrow row = narrow_load(b, NARROW);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) sum[i] += (a[i * rs_a] - (narrow){0}) * row;
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        float *to = s.c + (i0 + i) * s.ldc;
        if (s.beta) sum[i] = narrow_load(to, s.n) * s.beta[i0 + i] + sum[i];
        memcpy(to, &sum[i], s.n * sizeof(float));
    }
}

static void multiply_narrow(skinny_args s) {
    ptrdiff_t i = 0;
    for (; i + MR <= s.m; i += MR) narrow_block(s, i, MR);
    for (; i + 4 <= s.m; i += 4) narrow_block(s, i, 4);
    for (; i < s.m; i++) narrow_block(s, i, 1);
}
#endif

static void multiply(const skinny_args *args) {
    const skinny_args s = *args;
#if VLEN > 4
    if (s.n <= NARROW) {
        multiply_narrow(s);
        return;
    }
#endif
    for (ptrdiff_t j = 0; j < s.n; j += NV * VLEN) {
        ptrdiff_t i = blocks(s, 0, j, MR);
        i = blocks(s, i, j, 4);
        i = blocks(s, i, j, 2);
        blocks(s, i, j, 1);
    }
}

const skinny_ops TIERED(skinny_table) = {.multiply = multiply};
