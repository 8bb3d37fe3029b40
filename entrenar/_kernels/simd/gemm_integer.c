// Block-scaled integer micro-panels: GEMM_BLOCK steps of the contraction share a scale in each row of A or column of B.
//
//   int16  |A| <= 8191, |B| <= 4095: 64 products stay below 2^31       vpdpwssd, or vpmaddwd + vpaddd
//   int8   |A| <= 127 signed, B + 128 unsigned, |B| <= 127             vpdpbusd (VNNI only)
//
// Each block of a micro-panel is a header of two rows (scales; for int8's A also -128 times the sum of its quantized
// values, which takes the offset of B away) and rows of 32-bit words of 2 or 4 quantized values: panel[row][word].
// The sums of a block are exact; they are scaled and added in fp32.
#include "simd/integer_panels.h"

#if defined(__SSE2__)
enum { BLOCK = GEMM_BLOCK, HEADER = 2 };

// What an operand is quantized to: `per_word` values of magnitudes up to `limit`, `offset_binary` with inverted sign
typedef struct integers {
    int per_word, limit, offset_binary;
} integers;
static const integers A16 = {2, 8191, 0}, B16 = {2, INT16_LIMIT, 0};

// ---------------------------------------------------------------- packing
// Quantize a block of a packed fp32 micro-panel: per_word steps become one word; steps from kc on are zero
INLINE void quantize_block(float *out, const float *panel, int width, int kc, integers q) {
    const int bits = 32 / q.per_word;
    for (int i = 0; i < width; i += VLEN) {
        vf inverse, scale = block_scale(panel + i, width, kc, (float)q.limit, &inverse);
        vi total = {0};
        float *to = out + HEADER * width + i;
        for (int p = 0; p < BLOCK; p += q.per_word, to += width) {
            vi word = {0};
#pragma GCC unroll 4
            for (int j = 0; j < q.per_word; j++) {
                if (p + j >= kc) break;
                vi value = round_to_int(vload(panel + (p + j) * width + i) * inverse);
                total += value;
                word |= j == q.per_word - 1 ? value << (bits * j) : (value & ((1 << bits) - 1)) << (bits * j);
            }
            if (q.offset_binary) word ^= (int32_t)0x80808080;
            vistore((int32_t *)to, word);
        }
        vstore(out + i, scale);
        vistore((int32_t *)out + width + i, total * -128);
    }
}

INLINE void pack(float *packed, int width, const matrix_view *matrix, int k_major, ptrdiff_t first, int count,
                 ptrdiff_t p0, ptrdiff_t kc, integers q) {
    float panel[BLOCK * NR] __attribute__((aligned(64)));
    for (ptrdiff_t p = 0; p < kc; p += BLOCK, packed += (HEADER + BLOCK / q.per_word) * width) {
        const int n = kc - p < BLOCK ? (int)(kc - p) : BLOCK;
        TIERED(gemm_pack)(panel, width, matrix, k_major, first, count, p0 + p, n);
        quantize_block(packed, panel, width, n, q);
    }
}

// Rows that are what a micro-panel holds: pairs of values are moved as if they were floats, scales as they are
static void move_int16(float *packed, int width, const matrix_view *matrix, ptrdiff_t first, int count, ptrdiff_t p0,
                       ptrdiff_t kc) {
    matrix_view pairs = *matrix;
    pairs.type = WEIGHT_F32;
    pairs.row_stride = matrix->row_stride / 4;
    const ptrdiff_t blocks = matrix->columns / BLOCK;
    for (ptrdiff_t p = p0; p < p0 + kc; p += BLOCK, packed += (HEADER + BLOCK / 2) * width) {
        for (int i = 0; i < width; i++) packed[i] = i < count ? matrix->scales[(first + i) * blocks + p / BLOCK] : 0.0f;
        TIERED(gemm_pack)(packed + HEADER * width, width, &pairs, 1, first, count, p / 2, BLOCK / 2);
    }
}

static void pack_a16(float *packed, int width, const matrix_view *matrix, int k_major, ptrdiff_t first, int count,
                     ptrdiff_t p0, ptrdiff_t kc) {
    pack(packed, width, matrix, k_major, first, count, p0, kc, A16);
}
static void pack_b16(float *packed, int width, const matrix_view *matrix, int k_major, ptrdiff_t first, int count,
                     ptrdiff_t p0, ptrdiff_t kc) {
    if (k_major && TIERED(weight_types)[matrix->type].int16_panels)
        move_int16(packed, width, matrix, first, count, p0, kc);
    else pack(packed, width, matrix, k_major, first, count, p0, kc, B16);
}

// ---------------------------------------------------------------- the micro-kernel
INLINE vi multiply_add8(vi sum, vi a, vi b) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)b, (__m512i)a);
#else
    (void)a, (void)b;
    return sum;  // never called: the table of a tier without VNNI has no int8
#endif
}

// per_word is a constant at every call
INLINE void multiply(float *c, ptrdiff_t ldc, const float *a, const float *b, ptrdiff_t kc, int m, int n,
                     int accumulate, int per_word) {
    float total[MR * NR] __attribute__((aligned(64)));
#pragma GCC unroll 24  // all: gcc would make a memset of the loop, whose start costs more than its stores
    for (int i = 0; i < MR * NR; i += VLEN) vstore(total + i, vset(0.0f));
    prefetch_tile(c, ldc, m);
    for (ptrdiff_t p = 0; p < kc; p += BLOCK) {
        const float *a_scale = a, *b_scale = b;
        vi sum[MR][NV];
#pragma GCC unroll 14
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
            for (int j = 0; j < NV; j++) sum[i][j] = per_word == 4 ? viset(((const int32_t *)a)[PACKMR + i]) : (vi){0};
        a += HEADER * PACKMR;
        b += HEADER * NR;
        for (int g = 0; g < BLOCK / per_word; g++, a += PACKMR, b += NR) {
            vi row[NV];
#pragma GCC unroll 2
            for (int j = 0; j < NV; j++) row[j] = viload((const int32_t *)b + j * VLEN);
#pragma GCC unroll 14
            for (int i = 0; i < MR; i++) {
                const vi x = viset(((const int32_t *)a)[i]);
#pragma GCC unroll 2
                for (int j = 0; j < NV; j++)
                    sum[i][j] =
                        per_word == 2 ? multiply_add16(sum[i][j], x, row[j]) : multiply_add8(sum[i][j], x, row[j]);
            }
        }
        __asm__ volatile("" ::: "memory");  // keeps the loads below out of the loop: gcc would spill the sums for them
#pragma GCC unroll 14
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
            for (int j = 0; j < NV; j++) {
                float *to = total + i * NR + j * VLEN;
                // the product of the scales first: one of them times the sum could overflow where the product does not;
                // where both are below 1e-17 or so it underflows instead
                vstore(to, vload(to) + to_float(sum[i][j]) * (a_scale[i] * vload(b_scale + j * VLEN)));
            }
    }
    store_tile(c, ldc, total, m, n, accumulate);
}
static void micro_kernel16(float *c, ptrdiff_t ldc, const float *a, const float *b, ptrdiff_t kc, int m, int n,
                           int accumulate) {
    multiply(c, ldc, a, b, kc, m, n, accumulate, A16.per_word);
}
const gemm_format TIERED(gemm_int16) = {
    .mr = MR,
    .nr = NR,
    .packmr = PACKMR,
    .block = BLOCK,
    .block_words = HEADER + BLOCK / 2,
    .pack_a = pack_a16,
    .pack_b = pack_b16,
    .micro_kernel = micro_kernel16,
};

#if defined(__AVX512VNNI__)
static const integers A8 = {4, 127, 0}, B8 = {4, 127, 1};
static void pack_a8(float *packed, int width, const matrix_view *matrix, int k_major, ptrdiff_t first, int count,
                    ptrdiff_t p0, ptrdiff_t kc) {
    pack(packed, width, matrix, k_major, first, count, p0, kc, A8);
}
static void pack_b8(float *packed, int width, const matrix_view *matrix, int k_major, ptrdiff_t first, int count,
                    ptrdiff_t p0, ptrdiff_t kc) {
    pack(packed, width, matrix, k_major, first, count, p0, kc, B8);
}
static void micro_kernel8(float *c, ptrdiff_t ldc, const float *a, const float *b, ptrdiff_t kc, int m, int n,
                          int accumulate) {
    multiply(c, ldc, a, b, kc, m, n, accumulate, A8.per_word);
}
const gemm_format TIERED(gemm_int8) = {
    .mr = MR,
    .nr = NR,
    .packmr = PACKMR,
    .block = BLOCK,
    .block_words = HEADER + BLOCK / 4,
    .pack_a = pack_a8,
    .pack_b = pack_b8,
    .micro_kernel = micro_kernel8,
};
#else
const gemm_format TIERED(gemm_int8) = {0};
#endif
#else  // no 16-bit multiply-add known for this machine
const gemm_format TIERED(gemm_int16) = {0}, TIERED(gemm_int8) = {0};
#endif
