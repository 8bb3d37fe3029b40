// What Q4_K and Q5_K share: 256 columns, 32 of which have a scale and a minimum of 6 bits each, times fp16 d and m.
//
//   byte 0  d, m  |  4  scales and minima  |  16 ...  integers q      weight = (d scale) q - (m minimum)
//
// For i < 4, byte 4 + i has scale i in its low 6 bits, byte 8 + i minimum i; byte 12 + i has the low nibbles of scale
// 4 + i and, above it, of minimum 4 + i, whose two high bits are those of bytes 4 + i and 8 + i.
#pragma once
#include "simd/weights/fit.h"
#include "simd/weights/gemv.h"

enum { SUB_BLOCKS = K_BLOCK / GGML_BLOCK, HEADER = 16 };

// Byte i of each is that of sub-block i
INLINE void load_sixes(const uint8_t *block, uint64_t *scales, uint64_t *minima) {
    uint32_t a, b, c;
    memcpy(&a, block + 4, 4), memcpy(&b, block + 8, 4), memcpy(&c, block + 12, 4);
    const uint32_t sixes = 0x3f3f3f3f, nibbles = 0x0f0f0f0f, high = 0x30303030;
    *scales = (uint64_t)((c & nibbles) | (a >> 2 & high)) << 32 | (a & sixes);
    *minima = (uint64_t)((c >> 4 & nibbles) | (b >> 2 & high)) << 32 | (b & sixes);
}
INLINE void store_sixes(uint8_t *block, const int *scales, const int *minima) {
    for (int i = 0; i < 4; i++) {
        block[4 + i] = (uint8_t)(scales[i] | scales[4 + i] >> 4 << 6);
        block[8 + i] = (uint8_t)(minima[i] | minima[4 + i] >> 4 << 6);
        block[12 + i] = (uint8_t)((scales[4 + i] & 15) | (minima[4 + i] & 15) << 4);
    }
}

// values = values scale - minimum, those of the sub-block at column `first`: the products are exact
INLINE void scale_sixes(const uint8_t *block, int first, int count, vf *values) {
    uint64_t scales, minima;
    vf d, m;
    load_sixes(block, &scales, &minima);
    halves_everywhere(block, &d, &m);
    d *= (float)(int)(scales >> (first / GGML_BLOCK * 8) & 63);
    m *= (float)(int)(minima >> (first / GGML_BLOCK * 8) & 63);
#pragma GCC unroll 8
    for (int v = 0; v < count / VLEN; v++) values[v] = values[v] * d - m;
}

#if HAS_GEMV_INTEGER
INLINE v8 bytes_to_floats(uint64_t bytes) {
    return (v8)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)bytes)));
}
// integer_blocks.scales
INLINE void block_scales(const uint8_t *block, v8 scales[SUBS], v8 minima[SUBS]) {
    uint64_t scale, minimum;
    load_sixes(block, &scale, &minimum);
    scales[0] = bytes_to_floats(scale) * half_to_float(block);
    minima[0] = bytes_to_floats(minimum) * -half_to_float(block + 2);
}
#endif

#if HAS_PLANES
// byte_blocks.scales
INLINE __m512i byte_scales(const uint8_t *block, float *d, vf *minima) {
    uint64_t scale, minimum;
    int32_t halves;
    memcpy(&halves, block, 4);
    load_sixes(block, &scale, &minimum);
    const __m128 both = _mm_cvtph_ps(_mm_cvtsi32_si128(halves));
    const __m256 m = _mm256_broadcastss_ps(_mm_movehdup_ps(both));
    *d = _mm_cvtss_f32(both);
    *minima = -(vf)_mm512_zextps256_ps512((__m256)bytes_to_floats(minimum) * m);
    return _mm512_zextsi128_si512(_mm_cvtsi64_si128((int64_t)scale));
}
// 256 columns of nibbles in 128 bytes, as GEMV_SIXTEENS: lane L of q[0] and q[1] has sub-block 2 L, of the others
// 2 L + 1
INLINE void byte_nibbles(const uint8_t *bytes, __m512i q[4]) {
    const __m512i a = _mm512_loadu_si512(bytes), b = _mm512_loadu_si512(bytes + 64), mask = _mm512_set1_epi8(15);
    for (int i = 0; i < 2; i++) {
        const __m512i both = i ? _mm512_shuffle_i64x2(a, b, 0xdd) : _mm512_shuffle_i64x2(a, b, 0x88);
        q[i] = _mm512_and_si512(both, mask);
        q[2 + i] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
    }
}
#endif

// The header of a block, and its integers 0 .. most
INLINE int encode_sixes(uint8_t *block, const float *x, int most, int32_t values[K_BLOCK]) {
    affine_fit fits[SUB_BLOCKS];
    float scale = 0.0f, minimum = 0.0f;
    for (int i = 0; i < SUB_BLOCKS; i++) {
        fits[i] = fit_affine(x + i * GGML_BLOCK, GGML_BLOCK, most);
        scale = fits[i].scale > scale ? fits[i].scale : scale;
        minimum = fits[i].minimum > minimum ? fits[i].minimum : minimum;
    }
    if (half_overflows(scale / 63.0f) || half_overflows(minimum / 63.0f)) return QUANTIZE_SCALE_OVERFLOW;
    const float d = stored_half(block, scale / 63.0f), m = stored_half(block + 2, minimum / 63.0f);
    int scales[SUB_BLOCKS], minima[SUB_BLOCKS];
    for (int i = 0; i < SUB_BLOCKS; i++) {
        scales[i] = (int)fminf(fits[i].scale * reciprocal_or_zero(d) + 0.5f, 63.0f);
        minima[i] = (int)fminf(fits[i].minimum * reciprocal_or_zero(m) + 0.5f, 63.0f);
        integers_of(values + i * GGML_BLOCK, x + i * GGML_BLOCK, GGML_BLOCK, -m * (float)minima[i],
                    d * (float)scales[i], 0.0f, (float)most);
    }
    store_sixes(block, scales, minima);
    return QUANTIZE_OK;
}
// 64 columns in 32 bytes: the low nibbles are the first 32
INLINE void store_nibble_groups(uint8_t *bytes, const int32_t values[K_BLOCK]) {
    for (int i = 0; i < K_BLOCK / 2; i++) {
        const int32_t *low = values + i / 32 * 64 + i % 32;
        bytes[i] = (uint8_t)((low[0] & 15) | (low[32] & 15) << 4);
    }
}
