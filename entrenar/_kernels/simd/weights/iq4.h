// What IQ4_NL and IQ4_XS share: nibbles that stand for 16 values which lie closer together near 0.
#pragma once
#include "simd/weights/fit.h"
#include "simd/weights/gemv.h"

enum { IQ4_ZERO = 128 };
static const int8_t IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

// The values of 16 nibbles, plus IQ4_ZERO
INLINE vb16 iq4_values(vb16 nibbles) {
#if VLEN == 4
    vb16 values;
    for (int i = 0; i < 16; i++) values[i] = (uint8_t)(IQ4[nibbles[i]] + IQ4_ZERO);
    return values;
#else
    return (vb16)_mm_shuffle_epi8(_mm_loadu_si128((const void *)IQ4), (__m128i)nibbles) + (uint8_t)IQ4_ZERO;
#endif
}
// The 16 columns of the low or the high nibbles (shift 0 or 4), in whole vectors
INLINE void load_iq4(const uint8_t *bytes, int shift, vf *out) {
    widen16(iq4_values(load16(bytes) >> (uint8_t)shift & 15), IQ4_ZERO, out);
}

#if HAS_GEMV_INTEGER
// 32 columns in 16 bytes, of which the low nibbles are the first 16
INLINE void load_iq4_integer(const uint8_t *bytes, vh values[INTEGER_VECTORS]) {
    const vb16 nibbles = load16(bytes);
    const vb16 low = iq4_values(nibbles & 15) - (uint8_t)IQ4_ZERO, high = iq4_values(nibbles >> 4) - (uint8_t)IQ4_ZERO;
    join(_mm256_cvtepi8_epi16((__m128i)low), _mm256_cvtepi8_epi16((__m128i)high), values);
}
#endif

// Each lane the nearest of the 16 values: each that is passed at its midpoint adds its distance from the one before
INLINE vf nearest_iq4(vf x) {
    vf value = vset((float)IQ4[0]);
#pragma GCC unroll 15
    for (int i = 1; i < 16; i++) {
        const vi above = x > vset(0.5f * (float)(IQ4[i - 1] + IQ4[i]));
        value += (vf)(above & (vi)vset((float)(IQ4[i] - IQ4[i - 1])));
    }
    return value;
}

// The scale of x ~ scale value, 32 of them, with the least squared error; 0 where all are that. Candidates put the
// value of largest magnitude near one end of the values or the other.
INLINE float fit_iq4(const float *x) {
    float extreme = 0.0f, best = 0.0f, gain = 0.0f;
    for (int i = 0; i < GGML_BLOCK; i++) extreme = fabsf(x[i]) > fabsf(extreme) ? x[i] : extreme;
    if (fabsf(extreme) < 1e-30f) return 0.0f;
    for (int round = 0; round < 4; round++) {
        float inverse[CANDIDATES], scales[CANDIDATES], gains[CANDIDATES];
        for (int c = 0; c < CANDIDATES; c++) {
            const float end = round == 0 ? (float)IQ4[0] : (float)IQ4[15], step = (float)(c - CANDIDATES / 2);
            inverse[c] =
                round < 2 ? (end + 2.5f * step) / extreme : (1.0f + (round == 2 ? 5e-3f : 1e-3f) * step) / best;
        }
        for (int c = 0; c < CANDIDATES; c += VLEN) {
            const vf factor = vload(inverse + c);
            vf q2 = {0}, xq = {0};
            for (int i = 0; i < GGML_BLOCK; i++) {
                const vf q = nearest_iq4(factor * x[i]);
                q2 += q * q, xq += q * x[i];
            }
            vstore(scales + c, xq / q2);
            vstore(gains + c, xq / q2 * xq);
        }
        for (int c = 0; c < CANDIDATES; c++)
            if (gains[c] > gain * (1.0f + 1e-6f)) best = scales[c], gain = gains[c];
    }
    return best;
}

// 32 columns as the nibbles of 16 bytes under this scale
INLINE void store_iq4(uint8_t bytes[16], const float *x, float scale) {
    const float factor = reciprocal_or_zero(scale);
    uint8_t nibbles[GGML_BLOCK];
    for (int i = 0; i < GGML_BLOCK; i++) {
        uint8_t nibble = 0;
        for (int j = 1; j < 16; j++) nibble += x[i] * factor > 0.5f * (float)(IQ4[j - 1] + IQ4[j]);
        nibbles[i] = nibble;
    }
    for (int i = 0; i < 16; i++) bytes[i] = (uint8_t)(nibbles[i] | nibbles[16 + i] << 4);
}
