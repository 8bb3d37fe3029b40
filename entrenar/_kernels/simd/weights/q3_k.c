// Q3_K, ggml's: 256 columns in 110 bytes, 16 of which share a scale of 6 bits in units of an fp16 d;
// weight = (d (scale - 32)) (q - 4).
//
//   byte 0  high bits of q  |  32  low pairs of bits  |  96  low nibbles of the scales  |  104  high pairs  |  108  d
//
// Each half of 128 columns has 32 bytes of pairs, whose bits 2 i and 2 i + 1 are those of columns 32 i to 32 i + 31;
// bit 4 half + i of the 32 bytes of high bits belongs to the same column. Byte 96 + i has the nibbles of scales i and,
// above it, 8 + i; byte 104 + i has the pairs of scales i, 4 + i, 8 + i and 12 + i.
#include "simd/weights/fit.h"
#include "simd/weights/gemv.h"

enum { HIGH = 0, PAIRS = 32, LOW_SCALES = 96, HIGH_SCALES = 104, D = 108, BYTES = 110, SUB_BLOCK = 16 };
enum { SUB_BLOCKS = K_BLOCK / SUB_BLOCK, ZERO = 4, SCALE_ZERO = 32 };

INLINE int scale_of(const uint8_t *block, int i) {
    const int low = block[LOW_SCALES + i % 8] >> i / 8 * 4 & 15, high = block[HIGH_SCALES + i % 4] >> i / 4 * 2 & 3;
    return (low | high << 4) - SCALE_ZERO;
}

INLINE void part(const uint8_t *block, int first, int count, vf *values) {
    const int half = first / 128, group = first / 32 % 4;
    const uint8_t *pairs = block + PAIRS + half * 32 + first % 32, *bits = block + HIGH + first % 32;
    const vf d = half_everywhere(block + D);
#pragma GCC unroll 2
    for (int i = 0; i < count; i += 16) {
        const vb16 low = load16(pairs + i) >> (uint8_t)(2 * group) & 3;
        const vb16 high = (load16(bits + i) >> (uint8_t)(4 * half + group) & 1) << 2;
        const vf scale = d * (float)scale_of(block, (first + i) / SUB_BLOCK);
        vf *to = values + i / VLEN;
        widen16(low | high, ZERO, to);
        for (int v = 0; v < 16 / VLEN; v++) to[v] *= scale;
    }
}

// The squared error of a sub-block under this scale
INLINE float error_of(const float *x, float scale) {
    const float factor = reciprocal_or_zero(scale);
    vf sum = {0};
    for (int i = 0; i < SUB_BLOCK; i += VLEN) {
        const vf difference = rounded(clamped(vload(x + i) * factor, -ZERO, ZERO - 1)) * scale - vload(x + i);
        sum += difference * difference;
    }
    return vsum(sum);
}

// A sub-block's scale in 6 bits: of those around the best fit the one with the least error
INLINE int encode_scale(const float *x, float fit, float d) {
    const float near = rintf(fit * reciprocal_or_zero(d));
    float least = INFINITY, best = 0.0f;
    for (int i = -1; i <= 1; i++) {
        const float scale = fmaxf(fminf(near + (float)i, SCALE_ZERO - 1), -SCALE_ZERO), error = error_of(x, d * scale);
        if (error < least) best = scale, least = error;
    }
    return (int)best;
}

// The sub-block's scale of largest magnitude becomes -32
INLINE int encode(uint8_t *block, const float *x, float largest) {
    (void)largest;
    float fits[SUB_BLOCKS], extreme = 0.0f;
    int32_t values[K_BLOCK];
    for (int i = 0; i < SUB_BLOCKS; i++) {
        fits[i] = fit_signed(x + i * SUB_BLOCK, SUB_BLOCK, ZERO);
        extreme = fabsf(fits[i]) > fabsf(extreme) ? fits[i] : extreme;
    }
    if (half_overflows(extreme / -SCALE_ZERO)) return QUANTIZE_SCALE_OVERFLOW;
    const float d = stored_half(block + D, extreme / -SCALE_ZERO);
    memset(block, 0, D);
    for (int i = 0; i < SUB_BLOCKS; i++) {
        const int scale = encode_scale(x + i * SUB_BLOCK, fits[i], d), stored = scale + SCALE_ZERO;
        block[LOW_SCALES + i % 8] |= (uint8_t)((stored & 15) << i / 8 * 4);
        block[HIGH_SCALES + i % 4] |= (uint8_t)(stored >> 4 << i / 4 * 2);
        integers_of(values + i * SUB_BLOCK, x + i * SUB_BLOCK, SUB_BLOCK, 0.0f, d * (float)scale, -ZERO, ZERO - 1);
    }
    for (int i = 0; i < K_BLOCK; i++) {
        const int q = values[i] + ZERO, half = i / 128, group = i / 32 % 4;
        block[PAIRS + half * 32 + i % 32] |= (uint8_t)((q & 3) << 2 * group);
        block[HIGH + i % 32] |= (uint8_t)(q >> 2 << (4 * half + group));
    }
    return QUANTIZE_OK;
}
static const block_format FORMAT = {K_BLOCK, BYTES, 1, D, part, encode};

#if HAS_GEMV_INTEGER
INLINE void block_scales(const uint8_t *block, v8 scales[SUBS], v8 minima[SUBS]) {
    (void)minima;
    const float d = half_to_float(block + D);
    int32_t four;
    memcpy(&four, block + HIGH_SCALES, 4);
    const __m128i low = _mm_loadl_epi64((const void *)(block + LOW_SCALES));
    const __m256i pairs = _mm256_cvtepu8_epi32(_mm_set1_epi32(four));
    const __m256i shift = _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2), three = _mm256_set1_epi32(3);
    for (int i = 0; i < SUBS; i++) {
        const __m256i nibbles =
            _mm256_and_si256(_mm256_srli_epi32(_mm256_cvtepu8_epi32(low), 4 * i), _mm256_set1_epi32(15));
        const __m256i high = _mm256_and_si256(_mm256_srlv_epi32(_mm256_srli_epi32(pairs, 4 * i), shift), three);
        const __m256i six = _mm256_or_si256(nibbles, _mm256_slli_epi32(high, 4));
        scales[i] = (v8)_mm256_cvtepi32_ps(_mm256_sub_epi32(six, _mm256_set1_epi32(SCALE_ZERO))) * d;
    }
}
INLINE void read_integers(const uint8_t *block, int step, vh values[INTEGER_VECTORS]) {
    const int half = step / 4, group = step % 4;
    for (int v = 0; v < INTEGER_VECTORS; v++) {
        const vh bytes = load_bytes(block + PAIRS + half * 32, v);
        const vh low = with_bits(bytes ^ bytes, bytes, 2 * group, 3);
        values[v] = minus(with_bits(low, load_bytes(block + HIGH, v), 4 * half + group - 2, 1 << 2), ZERO);
    }
}
static const integer_blocks INTEGERS = {block_scales, read_integers, SUB_BLOCK, BYTES, 0};
#endif

#include "simd/weights/kernels.h"
const weight_kernels TIERED(weight_q3_k) = {dequantize, quantize, check, gemv, INTEGER_KERNELS};
