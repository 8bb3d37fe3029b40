// Q2_K, ggml's: 256 columns in 84 bytes, 16 of which share a scale and a minimum of 4 bits in units of fp16 d and m;
// weight = (d scale) q - m minimum.
//
//   byte 0  16 scales in low and minima in high nibbles  |  16  pairs of bits q  |  80  d, m
//
// Each half of 128 columns has 32 bytes of pairs, whose bits 2 i and 2 i + 1 are those of columns 32 i to 32 i + 31.
#include "simd/weights/fit.h"
#include "simd/weights/gemv.h"

enum { PAIRS = 16, D = 80, BYTES = 84, SUB_BLOCK = 16, SUB_BLOCKS = K_BLOCK / SUB_BLOCK };

INLINE void part(const uint8_t *block, int first, int count, vf *values) {
    const uint8_t *pairs = block + PAIRS + first / 128 * 32 + first % 32;
    vf d, m;
    halves_everywhere(block + D, &d, &m);
#pragma GCC unroll 2
    for (int i = 0; i < count; i += 16) {
        const int both = block[(first + i) / SUB_BLOCK];
        const vf scale = d * (float)(both & 15), minimum = m * (float)(both >> 4);
        vf *to = values + i / VLEN;
        widen16(load16(pairs + i) >> (uint8_t)(first / 32 % 4 * 2) & 3, 0, to);
        for (int v = 0; v < 16 / VLEN; v++) to[v] = to[v] * scale - minimum;  // the products are exact
    }
}

// The squared error of a sub-block under this scale and minimum
INLINE float error_of(const float *x, float scale, float minimum) {
    const float factor = reciprocal_or_zero(scale);
    vf sum = {0};
    for (int i = 0; i < SUB_BLOCK; i += VLEN) {
        const vf q = rounded(clamped((vload(x + i) + minimum) * factor, 0.0f, 3.0f));
        const vf difference = q * scale - minimum - vload(x + i);
        sum += difference * difference;
    }
    return vsum(sum);
}

// A sub-block's scale and minimum in 4 bits: of those around the best fit the ones with the least error
INLINE uint8_t encode_pair(const float *x, affine_fit fit, float d, float m) {
    const float scale = floorf(fit.scale * reciprocal_or_zero(d)),
                minimum = floorf(fit.minimum * reciprocal_or_zero(m));
    float least = INFINITY;
    uint8_t best = 0;
    for (int i = -1; i <= 2; i++)
        for (int j = -1; j <= 2; j++) {
            const float s = fmaxf(fminf(scale + (float)i, 15.0f), 0.0f);
            const float n = fmaxf(fminf(minimum + (float)j, 15.0f), 0.0f);
            const float error = error_of(x, d * s, m * n);
            if (error < least) best = (uint8_t)((int)s | (int)n << 4), least = error;
        }
    return best;
}

INLINE int encode(uint8_t *block, const float *x, float largest) {
    (void)largest;
    affine_fit fits[SUB_BLOCKS];
    float scale = 0.0f, minimum = 0.0f;
    int32_t values[K_BLOCK];
    for (int i = 0; i < SUB_BLOCKS; i++) {
        fits[i] = fit_affine(x + i * SUB_BLOCK, SUB_BLOCK, 3);
        scale = fits[i].scale > scale ? fits[i].scale : scale;
        minimum = fits[i].minimum > minimum ? fits[i].minimum : minimum;
    }
    if (half_overflows(scale / 15.0f) || half_overflows(minimum / 15.0f)) return QUANTIZE_SCALE_OVERFLOW;
    const float d = stored_half(block + D, scale / 15.0f), m = stored_half(block + D + 2, minimum / 15.0f);
    for (int i = 0; i < SUB_BLOCKS; i++) {
        const float *at = x + i * SUB_BLOCK;
        const uint8_t both = block[i] = encode_pair(at, fits[i], d, m);
        integers_of(values + i * SUB_BLOCK, at, SUB_BLOCK, -m * (float)(both >> 4), d * (float)(both & 15), 0.0f, 3.0f);
    }
    for (int i = 0; i < 64; i++) {
        const int32_t *at = values + i / 32 * 128 + i % 32;
        block[PAIRS + i] = (uint8_t)(at[0] | at[32] << 2 | at[64] << 4 | at[96] << 6);
    }
    return QUANTIZE_OK;
}
static const block_format FORMAT = {K_BLOCK, BYTES, 2, D, part, encode};

#if HAS_GEMV_INTEGER
INLINE void block_scales(const uint8_t *block, v8 scales[SUBS], v8 minima[SUBS]) {
    const float d = half_to_float(block + D), m = -half_to_float(block + D + 2);
    for (int i = 0; i < SUBS; i++) {
        const __m256i both = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(block + 8 * i)));
        scales[i] = (v8)_mm256_cvtepi32_ps(_mm256_and_si256(both, _mm256_set1_epi32(15))) * d;
        minima[i] = (v8)_mm256_cvtepi32_ps(_mm256_srli_epi32(both, 4)) * m;
    }
}
INLINE void read_integers(const uint8_t *block, int step, vh values[INTEGER_VECTORS]) {
    for (int v = 0; v < INTEGER_VECTORS; v++) {
        const vh bytes = load_bytes(block + PAIRS + step / 4 * 32, v);
        values[v] = with_bits(bytes ^ bytes, bytes, step % 4 * 2, 3);
    }
}
static const integer_blocks INTEGERS = {block_scales, read_integers, SUB_BLOCK, BYTES, 1};
#endif

#include "simd/weights/kernels.h"
const weight_kernels TIERED(weight_q2_k) = {dequantize, quantize, check, gemv, INTEGER_KERNELS};
