// Products of a few rows in 16-bit integers: x as codes with a scale for each step of columns, the weights as their codes
// (NF4's values rounded to 4095ths). The sum of a step is exact; it is scaled and added in fp32.
//
//   |x| <= 32767, |weight| <= 4095: the four products of a step that a 32-bit lane adds stay below 2^31
#include "simd/gemv.h"

#if VLEN >= 8  // without, decoding codes costs more than integers save
enum { VECTORS = STEP / (2 * VLEN), X_LIMIT = 32767 };

#if VLEN == 16
typedef __m512i vh;  // 2 VLEN int16
INLINE vh vhload(const void *p) { return _mm512_loadu_si512(p); }
INLINE vh vhbytes(const uint8_t *p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)p)); }
INLINE vi multiply_add(vh a, vh b) { return (vi)_mm512_madd_epi16(a, b); }
INLINE void join(__m256i low, __m256i high, vh *out) {
    out[0] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
#else
typedef __m256i vh;
INLINE vh vhload(const void *p) { return _mm256_loadu_si256(p); }
INLINE vh vhbytes(const uint8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)p)); }
INLINE vi multiply_add(vh a, vh b) { return (vi)_mm256_madd_epi16(a, b); }
INLINE void join(__m256i low, __m256i high, vh *out) { out[0] = low, out[1] = high; }
#endif

// ---------------------------------------------------------------- x
// A row in gemv_words(k) words: codes, the scale of each step, and the sum of each step's values / VLEN
typedef struct row_codes {
    int16_t *codes;
    float *scales, *sums;
} row_codes;
INLINE row_codes row_of(const float *words, ptrdiff_t k) {
    float *scales = (float *)words + k / 2;
    return (row_codes){(int16_t *)words, scales, scales + k / STEP};
}

void TIERED(gemv_quantize)(float *words, const float *x, ptrdiff_t k) {
    const row_codes to = row_of(words, k);
    for (ptrdiff_t p = 0; p < k; p += STEP) {
        int32_t codes[STEP], most = 0, sum = 0;
        for (int j = 0; j < STEP; j++) {  // as integers, in which NaN and infinity are the largest
            int32_t bits;
            memcpy(&bits, x + p + j, 4);
            bits &= 0x7fffffff;
            most = bits > most ? bits : most;
        }
        float largest;
        memcpy(&largest, &most, 4);
        const int zero = largest < 1e-30f;  // far below what a sum would notice
        const float inverse = zero ? 0.0f : X_LIMIT / largest, scale = zero ? 0.0f : largest * (1.0f / X_LIMIT);
        for (int j = 0; j < STEP; j += VLEN) vistore(codes + j, round_to_int(vload(x + p + j) * inverse));
        for (int j = 0; j < STEP; j++) {
            to.codes[p + j] = (int16_t)codes[j];
            sum += to.codes[p + j];
        }
        to.scales[p / STEP] = scale;
        to.sums[p / STEP] = (float)sum * scale / VLEN;
    }
}

// ---------------------------------------------------------------- weights
// 16 bytes of ggml's: the low nibbles are columns 0..15, the high ones 16..31
INLINE void q4_codes(const uint8_t *bytes, int zero, vh codes[VECTORS]) {
    const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)bytes)),
                  minus = _mm256_set1_epi16((short)zero);
    const __m256i low = _mm256_and_si256(wide, _mm256_set1_epi16(15)), high = _mm256_srli_epi16(wide, 4);
    join(_mm256_sub_epi16(low, minus), _mm256_sub_epi16(high, minus), codes);
}

// Two columns a byte, the first in the high nibble, as INT16_LIMIT times their values
INLINE void nf4_codes(const uint8_t *bytes, vh codes[VECTORS]) {
    static const int16_t table[16] = {-4095, -2851, -2150, -1617, -1165, -757, -373, 0,
                                      326,   659,   1008,  1384,  1805,  2304, 2961, 4095};
    const __m128i front = _mm_loadu_si128((const void *)table), back = _mm_loadu_si128((const void *)(table + 8)),
                  low = _mm_set1_epi16(255), mask = _mm_set1_epi8(15);
    const __m256i lows =
        _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_and_si128(front, low), _mm_and_si128(back, low)));
    const __m256i highs =
        _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_srli_epi16(front, 8), _mm_srli_epi16(back, 8)));
    const __m128i pairs = _mm_loadu_si128((const void *)bytes);
    const __m128i even = _mm_and_si128(_mm_srli_epi16(pairs, 4), mask), odd = _mm_and_si128(pairs, mask);
    const __m128i first = _mm_unpacklo_epi8(even, odd), second = _mm_unpackhi_epi8(even, odd);
    // columns 0..7 and 16..23, then 8..15 and 24..31: unpacking pairs of bytes puts them in order
    const __m256i index = _mm256_set_m128i(_mm_unpackhi_epi64(first, second), _mm_unpacklo_epi64(first, second));
    const __m256i a = _mm256_shuffle_epi8(lows, index), b = _mm256_shuffle_epi8(highs, index);
    join(_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b), codes);
}

// The columns [p, p + STEP) of a row, whose step starts at `bytes`: weight = code * scale, for Q4_1 + minimum
INLINE void step_codes(int type, const matrix_view *s, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes,
                       vh codes[VECTORS], vf *scale, vf *minimum) {
    if (type == WEIGHT_NF4) {
        *scale = vset(nf4_absmax(s, row * (s->columns / NF4_BLOCK) + p / NF4_BLOCK) * (1.0f / INT16_LIMIT));
        nf4_codes(bytes, codes);
    } else if (type == WEIGHT_Q4_1) {
        halves_everywhere(bytes, scale, minimum);
        q4_codes(bytes + 4, 0, codes);
    } else if (type == WEIGHT_Q4_0) {
        *scale = half_everywhere(bytes);
        q4_codes(bytes + 2, 8, codes);
    } else if (type == WEIGHT_Q8_0) {
        *scale = half_everywhere(bytes);
        for (int v = 0; v < VECTORS; v++) codes[v] = vhbytes(bytes + 2 + v * 2 * VLEN);
    } else {
        *scale = vset(s->absmax[row * (s->columns / INT16_BLOCK) + p / INT16_BLOCK]);
        for (int v = 0; v < VECTORS; v++) codes[v] = vhload((const int16_t *)bytes + v * 2 * VLEN);
    }
}

// y[r][first + i] (+)= x[r] . source[first + i] for r < rows, i < weights, both constants at every call
INLINE void block(int type, int rows, int weights, float *y, ptrdiff_t ldy, const float *words, const matrix_view *s,
                  ptrdiff_t first, ptrdiff_t k) {
    const uint8_t *bytes = (const uint8_t *)s->data + first * s->row_stride, *ahead = bytes + weights * s->row_stride;
    vf total[4] = {{0}, {0}, {0}, {0}};
    for (ptrdiff_t p = 0; p < k; p += STEP, bytes += step_bytes(type), ahead += step_bytes(type)) {
#pragma GCC unroll 4
        for (int i = 0; i < weights; i++) {
            vh codes[VECTORS];
            vf scale, minimum;
            __builtin_prefetch(ahead + i * s->row_stride);  // as in gemv.c
            step_codes(type, s, first + i, p, bytes + i * s->row_stride, codes, &scale, &minimum);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                const row_codes x = row_of(words + r * gemv_words(k), k);
                vi sum = multiply_add(codes[0], vhload(x.codes + p));
                vf *to = &total[r * weights + i];
#pragma GCC unroll 2
                for (int v = 1; v < VECTORS; v++) sum += multiply_add(codes[v], vhload(x.codes + p + v * 2 * VLEN));
                if (type == WEIGHT_Q4_1) *to += minimum * x.sums[p / STEP];
                *to += __builtin_convertvector(sum, vf) * (scale * x.scales[p / STEP]);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int i = 0; i < weights; i++) y[r * ldy + first + i] = vsum(total[r * weights + i]);
}

INLINE void gemv(int type, float *y, ptrdiff_t ldy, const float *words, int rows, const matrix_view *s, ptrdiff_t first,
                 ptrdiff_t count, ptrdiff_t k) {
#define BLOCK(rows, weights) block(type, rows, weights, y, ldy, words, s, first, k)
    EVERY_BLOCK(BLOCK)
}

void TIERED(gemv_integer)(float *y, ptrdiff_t ldy, const float *words, int rows, const matrix_view *s, ptrdiff_t first,
                          ptrdiff_t count, ptrdiff_t k) {
#define TYPE(type)                                                                                                     \
    case type: gemv(type, y, ldy, words, rows, s, first, count, k); break;
    switch (s->type) {
        EVERY_QUANTIZED_TYPE(TYPE)
    default: __builtin_unreachable();
    }
}
#endif
