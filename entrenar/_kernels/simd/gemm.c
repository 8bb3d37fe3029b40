// Packed matrix multiplication, after Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008,
// and Van Zee and van de Geijn, "BLIS", 2015. The operand that is a weight is decoded while it is packed.
#include "simd/gemm.h"
#include "simd/vec.h"

// Registers: MR x NV accumulators, NV of B and one broadcast of A: 31 of AVX-512's 32, 15 of the others' 16.
#if VLEN == 16
enum { MR = 14 };
#else
enum { MR = 6 };
#endif
enum { NV = 2, NR = NV * VLEN, CHUNK = 64 };

// ---------------------------------------------------------------- transposing VLEN x VLEN in registers
// Eklundh's exchange: at step s the blocks of s lanes off the diagonal change places between rows i and i + s.
#if VLEN == 16
#define LANES(f, s)                                                                                                    \
    {f(0, s), f(1, s), f(2, s),  f(3, s),  f(4, s),  f(5, s),  f(6, s),  f(7, s),                                      \
     f(8, s), f(9, s), f(10, s), f(11, s), f(12, s), f(13, s), f(14, s), f(15, s)}
#elif VLEN == 8
#define LANES(f, s) {f(0, s), f(1, s), f(2, s), f(3, s), f(4, s), f(5, s), f(6, s), f(7, s)}
#else
#define LANES(f, s) {f(0, s), f(1, s), f(2, s), f(3, s)}
#endif
#define FROM_LOW(l, s) (((l) & (s)) ? VLEN + (l) - (s) : (l))
#define FROM_HIGH(l, s) (((l) & (s)) ? VLEN + (l) : (l) + (s))
#define EXCHANGE(s)                                                                                                    \
    _Pragma("GCC unroll 16") for (int i = 0; i < VLEN; i++) if (!(i & (s))) {                                          \
        vf low = r[i], high = r[i + (s)];                                                                              \
        r[i] = __builtin_shuffle(low, high, (vi)LANES(FROM_LOW, s));                                                   \
        r[i + (s)] = __builtin_shuffle(low, high, (vi)LANES(FROM_HIGH, s));                                            \
    }
INLINE void transpose(vf r[VLEN]) {
    EXCHANGE(1);
    EXCHANGE(2);
#if VLEN >= 8
    EXCHANGE(4);
#endif
#if VLEN >= 16
    EXCHANGE(8);
#endif
}

// ---------------------------------------------------------------- packing
// out[p][lane] = rows[lane][p], p < depth, for lanes [lane0, lane0 + VLEN) of which `count` exist. A store of VLEN lanes
// of the first lanes may run into the next p, which is written later; elsewhere only the `room` lanes that exist are stored.
INLINE void transpose_lanes(float *out, int lanes, int lane0, const float *const *rows, int count, ptrdiff_t depth) {
    const int room = lanes - lane0 < VLEN ? lanes - lane0 : VLEN;
    const vf zero = {0};
    for (ptrdiff_t p = 0; p < depth; p += VLEN) {
        vf r[VLEN];
        const ptrdiff_t n = depth - p < VLEN ? depth - p : VLEN;
        if (n == VLEN) {
#pragma GCC unroll 16
            for (int i = 0; i < VLEN; i++) r[i] = i < count ? vload(rows[i] + p) : zero;
        } else {
            for (int i = 0; i < VLEN; i++) r[i] = i < count ? vload_n(rows[i] + p, n, 0.0f) : zero;
        }
        transpose(r);
        float *to = out + p * lanes + lane0;
        if (n == VLEN && (room == VLEN || (lane0 == 0 && p + VLEN < depth))) {
#pragma GCC unroll 16
            for (int i = 0; i < VLEN; i++) vstore(to + i * lanes, r[i]);
        } else {
            for (int i = 0; i < n; i++) vstore_n(to + i * lanes, r[i], room);
        }
    }
}

void TIERED(gemm_pack_rows)(float *out, int lanes, const matrix_view *s, ptrdiff_t first, int count, ptrdiff_t start,
                            ptrdiff_t depth) {
    float decoded[VLEN][CHUNK];
    const float *rows[VLEN];
    for (ptrdiff_t p = 0; p < depth; p += CHUNK) {
        const ptrdiff_t n = depth - p < CHUNK ? depth - p : CHUNK;
        for (int lane0 = 0; lane0 < lanes; lane0 += VLEN) {
            int have = count - lane0;
            have = have < 0 ? 0 : have > VLEN ? VLEN : have;
            for (int i = 0; i < have; i++) {
                const ptrdiff_t row = first + lane0 + i;
                if (s->type == WEIGHT_F32) {
                    rows[i] = (const float *)s->data + row * s->row_stride + start + p;
                } else {
                    dequantize_row(s, row, start + p, n, decoded[i]);
                    rows[i] = decoded[i];
                }
            }
            transpose_lanes(out + p * lanes, lanes, lane0, rows, have, n);
        }
    }
}

// Whole panels of every format have constant sizes, for which memcpy is no call
INLINE void copy_lanes(float *out, const float *x, int count) {
    switch (count) {
    case 6: memcpy(out, x, 6 * sizeof(float)); break;
    case 12: memcpy(out, x, 12 * sizeof(float)); break;
    case 14: memcpy(out, x, 14 * sizeof(float)); break;
    case NR: memcpy(out, x, NR * sizeof(float)); break;
    default: memcpy(out, x, (size_t)count * sizeof(float));
    }
}

void TIERED(gemm_pack_columns)(float *out, int lanes, const matrix_view *s, ptrdiff_t first, int count, ptrdiff_t start,
                               ptrdiff_t depth) {
    for (ptrdiff_t p = 0; p < depth; p++, out += lanes) {
        if (s->type == WEIGHT_F32) copy_lanes(out, (const float *)s->data + (start + p) * s->row_stride + first, count);
        else dequantize_row(s, start + p, first, count, out);
        for (int i = count; i < lanes; i++) out[i] = 0.0f;
    }
}

// ---------------------------------------------------------------- the register tile
static void tile(float *c, ptrdiff_t ldc, const float *a, const float *b, ptrdiff_t depth, int rows, int columns,
                 int accumulate) {
    vf sum[MR][NV];
#pragma GCC unroll 14
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) sum[i][j] = (vf){0};
#pragma GCC unroll 4
    for (ptrdiff_t p = 0; p < depth; p++, a += MR, b += NR) {
        vf right[NV];
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) right[j] = vload(b + j * VLEN);
#pragma GCC unroll 14
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
            for (int j = 0; j < NV; j++) sum[i][j] += a[i] * right[j];
    }
    if (rows == MR && columns == NR) {
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
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++)
            c[i * ldc + j] = accumulate ? c[i * ldc + j] + edge[i * NR + j] : edge[i * NR + j];
}

static const gemm_format fp32 = {
    .mr = MR,
    .packmr = MR,
    .nr = NR,
    .block = 1,
    .block_words = 1,
    .pack_a = TIERED(gemm_pack_rows),
    .pack_a_transposed = TIERED(gemm_pack_columns),
    .pack_b_transposed = TIERED(gemm_pack_rows),
    .pack_b = TIERED(gemm_pack_columns),
    .micro_kernel = tile,
};
const gemm_ops TIERED(gemm_table) = {
    .format = {[GEMM_FP32] = &fp32, [GEMM_INT16] = &TIERED(gemm_int16), [GEMM_INT8] = &TIERED(gemm_int8)},
    .pack_columns = TIERED(gemm_pack_columns),
    .skinny = TIERED(gemm_skinny),
};
