// NF4 (Dettmers et al., "QLoRA", arXiv 2305.14314) with the bits of bitsandbytes: a value is one of 16 quantiles of the
// normal distribution, two a byte, the first in the high nibble. 64 columns share a scale, their largest magnitude,
// itself fp32 or 8 bits ("double quantization": scale = map[quantized_scales[block]] * scales[block / 256] + offset).
#include "simd/weights/gemv.h"

enum { BLOCK = 64, SCALE_BLOCK = 256 };
_Static_assert(BLOCK % STEP == 0, "a step would cross blocks");

// As bitsandbytes rounds them
static const float VALUES[16] = {-1.0f,
                                 -0.6961928009986877f,
                                 -0.5250730514526367f,
                                 -0.39491748809814453f,
                                 -0.28444138169288635f,
                                 -0.18477343022823334f,
                                 -0.09105003625154495f,
                                 0.0f,
                                 0.07958029955625534f,
                                 0.16093020141124725f,
                                 0.24611230194568634f,
                                 0.33791524171829224f,
                                 0.44070982933044434f,
                                 0.5626170039176941f,
                                 0.7229568362236023f,
                                 1.0f};

// The scale at column k, the same bits on every tier
INLINE float scale_of(const matrix_view *s, ptrdiff_t row, ptrdiff_t k) {
    const ptrdiff_t block = row * (s->columns / BLOCK) + k / BLOCK;
    if (!s->quantized_scales) return s->scales[block];
    float product = s->scale_map[s->quantized_scales[block]] * s->scales[block / SCALE_BLOCK];
    ROUNDED(product);
    return product + s->scale_offset;
}

// out = VALUES of `count` (16 or 32) columns in count / 2 bytes, in whole vectors
INLINE void load_values(const uint8_t *bytes, int count, vf *out) {
#if VLEN == 4
    float values[32];
    for (int i = 0; i < count / 2; i++) {
        values[2 * i] = VALUES[bytes[i] >> 4];
        values[2 * i + 1] = VALUES[bytes[i] & 15];
    }
    for (int i = 0; i < count / VLEN; i++) out[i] = vload(values + i * VLEN);
#elif VLEN == 16
    const __m128i mask = _mm_set1_epi8(15),
                  pairs = count == 16 ? _mm_loadl_epi64((const void *)bytes) : _mm_loadu_si128((const void *)bytes);
    const __m128i first = _mm_and_si128(_mm_srli_epi16(pairs, 4), mask), second = _mm_and_si128(pairs, mask);
    const __m512 table = _mm512_loadu_ps(VALUES);
    out[0] = (vf)_mm512_permutexvar_ps(_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(first, second)), table);
    if (count == 32) out[1] = (vf)_mm512_permutexvar_ps(_mm512_cvtepu8_epi32(_mm_unpackhi_epi8(first, second)), table);
#else
    // byte j of the fp32 VALUES[i] is table[j][i]: one lookup for each byte of a float, the least significant first
    static const uint8_t table[4][16] = {
        {0x00, 0xb1, 0x30, 0xa0, 0x4d, 0x3f, 0x71, 0x00, 0xff, 0xe3, 0xdd, 0x3a, 0xb8, 0xab, 0xb3, 0x00},
        {0x00, 0x39, 0x6b, 0x32, 0xa2, 0x35, 0x78, 0x00, 0xfa, 0xca, 0x04, 0x03, 0xa4, 0x07, 0x13, 0x00},
        {0x80, 0x32, 0x06, 0xca, 0x91, 0x3d, 0xba, 0x00, 0xa2, 0x24, 0x7c, 0xad, 0xe1, 0x10, 0x39, 0x80},
        {0xbf, 0xbf, 0xbf, 0xbe, 0xbe, 0xbe, 0xbd, 0x00, 0x3d, 0x3e, 0x3e, 0x3e, 0x3e, 0x3f, 0x3f, 0x3f}};
    // each byte twice: in the low half of the register columns 0-3, 8-11, ... of the 32, in the high half 4-7, ...
    const __m256i twice = _mm256_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13, 2, 2, 3, 3, 6, 6, 7, 7,
                                           10, 10, 11, 11, 14, 14, 15, 15);
    const __m128i pairs = count == 16 ? _mm_loadl_epi64((const void *)bytes) : _mm_loadu_si128((const void *)bytes);
    const __m256i wide = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(pairs), twice);
    const __m256i index = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(wide, 4), _mm256_set1_epi16(0x000f)),
                                          _mm256_and_si256(wide, _mm256_set1_epi16(0x0f00)));
    __m256i byte[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        byte[i] = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table[i])), index);
    const __m256i low = _mm256_unpacklo_epi8(byte[0], byte[1]), high = _mm256_unpacklo_epi8(byte[2], byte[3]);
    out[0] = (vf)_mm256_unpacklo_epi16(low, high);
    out[1] = (vf)_mm256_unpackhi_epi16(low, high);
    if (count == 32) {
        const __m256i lower = _mm256_unpackhi_epi8(byte[0], byte[1]), higher = _mm256_unpackhi_epi8(byte[2], byte[3]);
        out[2] = (vf)_mm256_unpacklo_epi16(lower, higher);
        out[3] = (vf)_mm256_unpackhi_epi16(lower, higher);
    }
#endif
}

INLINE void scaled(const uint8_t *bytes, int count, float scale, float *out) {
    vf values[32 / VLEN];
    load_values(bytes, count, values);
    for (int i = 0; i < count / VLEN; i++) vstore(out + i * VLEN, values[i] * scale);
}
// out = the columns [k, end) of a row, both multiples of 16
INLINE void groups(const matrix_view *s, ptrdiff_t row, ptrdiff_t k, ptrdiff_t end, float *out) {
    const uint8_t *bytes = (const uint8_t *)s->data + row * s->row_stride;
    while (k < end) {
        const float scale = scale_of(s, row, k);
        ptrdiff_t stop = (k / BLOCK + 1) * BLOCK;
        if (stop > end) stop = end;
        for (; k + 32 <= stop; k += 32, out += 32) scaled(bytes + k / 2, 32, scale, out);
        for (; k + 16 <= stop; k += 16, out += 16) scaled(bytes + k / 2, 16, scale, out);
    }
}
// Runs that begin or end within a group of 16 columns go through a copy
static __attribute__((noinline)) void cut_groups(const matrix_view *s, ptrdiff_t row, ptrdiff_t k, ptrdiff_t count,
                                                 float *out) {
    float group[16];
    for (ptrdiff_t end = k + count; k < end;) {
        const ptrdiff_t skip = k & 15, n = 16 - skip < end - k ? 16 - skip : end - k;
        groups(s, row, k - skip, k - skip + 16, group);
        memcpy(out, group + skip, (size_t)n * sizeof(float));
        k += n, out += n;
    }
}
static void dequantize(const matrix_view *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, float *out) {
    if ((k0 | count) & 15) cut_groups(s, row, k0, count, out);
    else groups(s, row, k0, k0 + count, out);
}

// value = the number of midpoints below x * (1 / scale), so ties go to the lower one
static int quantize(void *to, float *scales, const float *x, ptrdiff_t columns) {
    uint8_t *bytes = to;
    float midpoint[15];
    for (int i = 0; i < 15; i++) midpoint[i] = (VALUES[i] + VALUES[i + 1]) * 0.5f;
    int32_t value[BLOCK];
    int status = QUANTIZE_OK;
    for (ptrdiff_t block = 0; block < columns / BLOCK; block++, x += BLOCK, bytes += BLOCK / 2) {
        int32_t bits = largest_bits(x, BLOCK);
        if (bits >= INFINITY_BITS) status = QUANTIZE_NOT_FINITE;
        float largest = float_from_bits((uint32_t)bits);
        vf reciprocal = vset(1.0f / (largest < 1e-38f ? 1e-38f : largest));
        for (int i = 0; i < BLOCK; i += VLEN) {
            vf normal = vload(x + i) * reciprocal;
            vi count = viset(0);
            for (int j = 0; j < 15; j++) count -= normal > vset(midpoint[j]);
            vistore(value + i, count);
        }
        scales[block] = largest;
        for (int i = 0; i < BLOCK / 2; i++) bytes[i] = (uint8_t)(value[2 * i] << 4 | value[2 * i + 1]);
    }
    return status;
}

INLINE void step(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes, vf values[STEP_VECTORS]) {
    const vf scale = vset(scale_of(w, row, p));
    load_values(bytes, STEP, values);
#pragma GCC unroll 8
    for (int v = 0; v < STEP_VECTORS; v++) values[v] = values[v] * scale;
}
static void gemv(const gemv_args *g) { gemv_by(g, (steps){step, STEP, STEP / 2, 0}); }

#if HAS_GEMV_INTEGER
// 4095 VALUES to the nearest: what 16-bit products multiply
_Static_assert(INT16_LIMIT == 4095, "INTEGERS are multiples of it");
static const int16_t INTEGERS[16] = {-4095, -2851, -2150, -1617, -1165, -757, -373, 0,
                                     326,   659,   1008,  1384,  1805,  2304, 2961, 4095};

INLINE void step_integer(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes,
                         vh values[INTEGER_VECTORS], vf *scale, vf *minimum) {
    (void)minimum;
    *scale = vset(scale_of(w, row, p) * (1.0f / INT16_LIMIT));
    const __m128i front = _mm_loadu_si128((const void *)INTEGERS), back = _mm_loadu_si128((const void *)(INTEGERS + 8)),
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
    join(_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b), values);
}
static const integer_steps STEPS = {step_integer, STEP / 2, 0};
static void gemv_integer(const gemv_args *g) { gemv_integer_by(g, STEPS); }
static void integers(const matrix_view *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, int16_t *values, float *scales,
                     float *minima) {
    integers_by(s, row, k0, count, STEPS, values, scales, minima);
}
#endif

const weight_kernels TIERED(weight_nf4) = {
    .dequantize_row = dequantize,
    .quantize_row = quantize,
    .gemv = gemv,
#if HAS_GEMV_INTEGER
    .gemv_integer = gemv_integer,
    .integers = integers,
#endif
};
