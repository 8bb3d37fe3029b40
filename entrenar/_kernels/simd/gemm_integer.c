// Block-scaled integer panels for matrix multiplication: 64 steps of the contraction share one scale a lane.
//
//   int16  |left| <= 8191, |right| <= 4095: 64 products stay below 2^31       vpdpwssd, or vpmaddwd + vpaddd
//   int8   |left| <= 127 signed, right + 128 unsigned, |right| <= 127         vpdpbusd (VNNI only)
//
// Of every 64 steps a panel holds a header of two rows (scales; for the left int8 operand also -128 times the sum of its
// codes, which takes the offset of the right one away) and rows of 32-bit groups of 2 or 4 codes: panel[row][lane].
// The sums of 64 steps are exact; they are scaled and added in fp32.
#include "simd/gemm.h"
#include "simd/vec.h"

#if defined(__SSE2__)
enum { BLOCK = GEMM_BLOCK, HEADER = 2, NV = 2, NR = NV * VLEN };
enum { LEFT_LIMIT16 = 8191, RIGHT_LIMIT16 = INT16_LIMIT, LIMIT8 = 127 };

INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }

// ---------------------------------------------------------------- quantizing a block of a packed fp32 panel
// The scale of each lane: its largest magnitude / limit. Compared as integers, in which NaN and infinity are the largest,
// so that a value that is not finite makes the lane's scale, and with it every product, not finite.
INLINE vf lane_scale(const float *panel, int lanes, int depth, float limit, vf *inverse) {
    vi most = {0};
    for (int p = 0; p < depth; p++) {
        vi bits = (vi)vabs(vload(panel + p * lanes));
#if VLEN == 16
        most = (vi)_mm512_max_epi32((__m512i)most, (__m512i)bits);
#elif VLEN == 8
        most = (vi)_mm256_max_epi32((__m256i)most, (__m256i)bits);
#else
        vi less = most < bits;
        most = (bits & less) | (most & ~less);
#endif
    }
    const vi zero = (vf)most < vset(1e-30f);  // far below what a sum would notice
    *inverse = vselect(zero, vset(0.0f), vset(limit) / (vf)most);
    return vselect(zero, vset(0.0f), (vf)most * (1.0f / limit));
}

// `codes` (2 or 4) successive steps of a lane become one 32-bit group; steps from `depth` on are zero
INLINE void quantize_block(float *out, const float *panel, int lanes, int depth, int codes, float limit, int right) {
    const int bits = 32 / codes;
    for (int lane = 0; lane < lanes; lane += VLEN) {
        vf inverse, scale = lane_scale(panel + lane, lanes, depth, limit, &inverse);
        vi total = {0};
        float *to = out + HEADER * lanes + lane;
        for (int p = 0; p < BLOCK; p += codes, to += lanes) {
            vi group = {0};
#pragma GCC unroll 4
            for (int i = 0; i < codes; i++) {
                if (p + i >= depth) break;
                vi code = round_to_int(vload(panel + (p + i) * lanes + lane) * inverse);
                total += code;
                group |= i == codes - 1 ? code << (bits * i) : (code & ((1 << bits) - 1)) << (bits * i);
            }
            if (codes == 4 && right) group ^= (int32_t)0x80808080;
            vistore((int32_t *)to, group);
        }
        vstore(out + lane, scale);
        vistore((int32_t *)out + lanes + lane, total * -128);
    }
}

INLINE void pack(float *out, int lanes, const matrix_view *s, ptrdiff_t first, int count, ptrdiff_t start,
                 ptrdiff_t depth, gemm_packer pack_fp32, int codes, float limit, int right) {
    float panel[BLOCK * NR] __attribute__((aligned(64)));
    for (ptrdiff_t p = 0; p < depth; p += BLOCK, out += (HEADER + BLOCK / codes) * lanes) {
        const int n = depth - p < BLOCK ? (int)(depth - p) : BLOCK;
        pack_fp32(panel, lanes, s, first, count, start + p, n);
        quantize_block(out, panel, lanes, n, codes, limit, right);
    }
}
// Rows whose weight type is that of the panel already: their pairs of codes are moved as if they were floats, their scales as they are
INLINE void pack_codes(float *out, int lanes, const matrix_view *s, ptrdiff_t first, int count, ptrdiff_t start,
                       ptrdiff_t depth) {
    matrix_view pairs = *s;
    pairs.type = WEIGHT_F32;
    pairs.row_stride = s->row_stride / 4;
    const ptrdiff_t blocks = s->columns / BLOCK;
    for (ptrdiff_t p = start; p < start + depth; p += BLOCK, out += (HEADER + BLOCK / 2) * lanes) {
        for (int i = 0; i < lanes; i++) out[i] = i < count ? s->scales[(first + i) * blocks + p / BLOCK] : 0.0f;
        TIERED(gemm_pack_rows)(out + HEADER * lanes, lanes, &pairs, first, count, p / 2, BLOCK / 2);
    }
}
#define PACKERS(name, codes, left_limit, right_limit)                                                                  \
    static void name##_left_rows(float *out, int lanes, const matrix_view *s, ptrdiff_t first, int count,              \
                                 ptrdiff_t start, ptrdiff_t depth) {                                                   \
        pack(out, lanes, s, first, count, start, depth, TIERED(gemm_pack_rows), codes, left_limit, 0);                 \
    }                                                                                                                  \
    static void name##_left_columns(float *out, int lanes, const matrix_view *s, ptrdiff_t first, int count,           \
                                    ptrdiff_t start, ptrdiff_t depth) {                                                \
        pack(out, lanes, s, first, count, start, depth, TIERED(gemm_pack_columns), codes, left_limit, 0);              \
    }                                                                                                                  \
    static void name##_right_rows(float *out, int lanes, const matrix_view *s, ptrdiff_t first, int count,             \
                                  ptrdiff_t start, ptrdiff_t depth) {                                                  \
        if (codes == 2 && TIERED(weight_types)[s->type].int16_panels)                                                  \
            pack_codes(out, lanes, s, first, count, start, depth);                                                     \
        else pack(out, lanes, s, first, count, start, depth, TIERED(gemm_pack_rows), codes, right_limit, 1);           \
    }                                                                                                                  \
    static void name##_right_columns(float *out, int lanes, const matrix_view *s, ptrdiff_t first, int count,          \
                                     ptrdiff_t start, ptrdiff_t depth) {                                               \
        pack(out, lanes, s, first, count, start, depth, TIERED(gemm_pack_columns), codes, right_limit, 1);             \
    }

// ---------------------------------------------------------------- the register tile
INLINE vi multiply_add16(vi sum, vi left, vi right) {
#if VLEN == 16 && defined(__AVX512VNNI__)
    return (vi)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)left, (__m512i)right);
#elif VLEN == 16
    return sum + (vi)_mm512_madd_epi16((__m512i)left, (__m512i)right);
#elif VLEN == 8
    return sum + (vi)_mm256_madd_epi16((__m256i)left, (__m256i)right);
#else
    return sum + (vi)_mm_madd_epi16((__m128i)left, (__m128i)right);
#endif
}
INLINE vi multiply_add8(vi sum, vi left, vi right) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)right, (__m512i)left);
#else
    (void)left, (void)right;
    return sum;  // never called: the table of a tier without VNNI has no int8
#endif
}

#if VLEN == 16
enum { MR = 12 };
#else
enum { MR = 6 };
#endif
enum { PACKMR = (MR + VLEN - 1) / VLEN * VLEN };

INLINE void tile(float *c, ptrdiff_t ldc, const float *a, const float *b, ptrdiff_t depth, int rows, int columns,
                 int accumulate, int codes) {
    float total[MR * NR] __attribute__((aligned(64)));
    for (int i = 0; i < MR * NR; i += VLEN) vstore(total + i, vset(0.0f));
    for (ptrdiff_t p = 0; p < depth; p += BLOCK) {
        const float *left_scale = a, *right_scale = b;
        vi sum[MR][NV];
#pragma GCC unroll 14
        for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
            for (int j = 0; j < NV; j++) sum[i][j] = codes == 4 ? viset(((const int32_t *)a)[PACKMR + i]) : (vi){0};
        a += HEADER * PACKMR;
        b += HEADER * NR;
        for (int g = 0; g < BLOCK / codes; g++, a += PACKMR, b += NR) {
            vi right[NV];
#pragma GCC unroll 2
            for (int j = 0; j < NV; j++) right[j] = viload((const int32_t *)b + j * VLEN);
#pragma GCC unroll 14
            for (int i = 0; i < MR; i++) {
                const vi left = viset(((const int32_t *)a)[i]);
#pragma GCC unroll 2
                for (int j = 0; j < NV; j++)
                    sum[i][j] = codes == 2 ? multiply_add16(sum[i][j], left, right[j])
                                           : multiply_add8(sum[i][j], left, right[j]);
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
                vstore(to, vload(to) + to_float(sum[i][j]) * (left_scale[i] * vload(right_scale + j * VLEN)));
            }
    }
    for (int i = 0; i < rows; i++) {
        float *to = c + i * ldc, *from = total + i * NR;
        if (columns == NR) {
#pragma GCC unroll 2
            for (int j = 0; j < NR; j += VLEN)
                vstore(to + j, accumulate ? vload(to + j) + vload(from + j) : vload(from + j));
        } else {
            for (int j = 0; j < columns; j++) to[j] = accumulate ? to[j] + from[j] : from[j];
        }
    }
}
static void tile16(float *c, ptrdiff_t ldc, const float *a, const float *b, ptrdiff_t depth, int rows, int columns,
                   int accumulate) {
    tile(c, ldc, a, b, depth, rows, columns, accumulate, 2);
}
PACKERS(int16, 2, LEFT_LIMIT16, RIGHT_LIMIT16)
const gemm_format TIERED(gemm_int16) = {
    .mr = MR,
    .packmr = PACKMR,
    .nr = NR,
    .block = BLOCK,
    .block_words = HEADER + BLOCK / 2,
    .pack_a = int16_left_rows,
    .pack_a_transposed = int16_left_columns,
    .pack_b_transposed = int16_right_rows,
    .pack_b = int16_right_columns,
    .micro_kernel = tile16,
};

#if defined(__AVX512VNNI__)
static void tile8(float *c, ptrdiff_t ldc, const float *a, const float *b, ptrdiff_t depth, int rows, int columns,
                  int accumulate) {
    tile(c, ldc, a, b, depth, rows, columns, accumulate, 4);
}
PACKERS(int8, 4, LIMIT8, LIMIT8)
const gemm_format TIERED(gemm_int8) = {
    .mr = MR,
    .packmr = PACKMR,
    .nr = NR,
    .block = BLOCK,
    .block_words = HEADER + BLOCK / 4,
    .pack_a = int8_left_rows,
    .pack_a_transposed = int8_left_columns,
    .pack_b_transposed = int8_right_rows,
    .pack_b = int8_right_columns,
    .micro_kernel = tile8,
};
#else
const gemm_format TIERED(gemm_int8) = {0};
#endif
#else  // no 16-bit multiply-add known for this machine
const gemm_format TIERED(gemm_int16) = {0}, TIERED(gemm_int8) = {0};
#endif
