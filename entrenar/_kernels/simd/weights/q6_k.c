// Q6_K, ggml's: 256 columns in 210 bytes, 16 of which share a scale of 8 bits in units of an fp16 d;
// weight = (d scale) (q - 32).
//
//   byte 0  nibbles  |  128  upper pairs of bits  |  192  16 scales, signed  |  208  d
//
// Each half of 128 columns has 64 bytes of nibbles, whose low ones are columns 0..63 of it and high ones 64..127, and
// 32 bytes of pairs, whose bits 2 i and 2 i + 1 are those of columns 32 i to 32 i + 31.
#include "simd/weights/fit.h"
#include "simd/weights/gemv.h"

enum { PAIRS = 128, SCALES = 192, D = 208, BYTES = 210, SUB_BLOCK = 16, ZERO = 32 };

INLINE void part(const uint8_t *block, int first, int count, vf *values) {
    const int half = first / 128, group = first / 32 % 4;
    const uint8_t *nibbles = block + half * 64 + first % 64, *pairs = block + PAIRS + half * 32 + first % 32;
    const vf d = half_everywhere(block + D);
#pragma GCC unroll 2
    for (int i = 0; i < count; i += 16) {
        const vb16 low = bits_at(load16(nibbles + i), group / 2 * 4, 15);
        const vb16 high = (vb16)((vh8)bits_at(load16(pairs + i), 2 * group, 3) << 4);
        const vf scale = d * (float)(int8_t)block[SCALES + (first + i) / SUB_BLOCK];
        vf *to = values + i / VLEN;
        widen16(low | high, ZERO, to);
        for (int v = 0; v < 16 / VLEN; v++) to[v] *= scale;
    }
}

// The sub-block's scale of largest magnitude becomes -128
INLINE int encode(uint8_t *block, const float *x, float largest) {
    (void)largest;
    float scales[K_BLOCK / SUB_BLOCK], extreme = 0.0f;
    int32_t values[K_BLOCK];
    for (int i = 0; i < K_BLOCK / SUB_BLOCK; i++) {
        scales[i] = fit_signed(x + i * SUB_BLOCK, SUB_BLOCK, ZERO);
        extreme = fabsf(scales[i]) > fabsf(extreme) ? scales[i] : extreme;
    }
    if (half_overflows(extreme / -128.0f)) return QUANTIZE_SCALE_OVERFLOW;
    const float d = stored_half(block + D, extreme / -128.0f), factor = reciprocal_or_zero(d);
    for (int i = 0; i < K_BLOCK / SUB_BLOCK; i++) {
        const float scale = fmaxf(fminf(rintf(scales[i] * factor), 127.0f), -128.0f);
        block[SCALES + i] = (uint8_t)(int8_t)scale;
        integers_of(values + i * SUB_BLOCK, x + i * SUB_BLOCK, SUB_BLOCK, 0.0f, d * scale, -ZERO, ZERO - 1);
    }
    for (int i = 0; i < 64; i++) {
        const int32_t *at = values + i / 32 * 128 + i % 32;  // its pair's four columns, 32 apart
        int32_t q[4];
        for (int j = 0; j < 4; j++) q[j] = at[32 * j] + ZERO;
        uint8_t *nibbles = block + i / 32 * 64 + i % 32;
        nibbles[0] = (uint8_t)((q[0] & 15) | (q[2] & 15) << 4);
        nibbles[32] = (uint8_t)((q[1] & 15) | (q[3] & 15) << 4);
        block[PAIRS + i] = (uint8_t)(q[0] >> 4 | q[1] >> 4 << 2 | q[2] >> 4 << 4 | q[3] >> 4 << 6);
    }
    return QUANTIZE_OK;
}
static const block_format FORMAT = {K_BLOCK, BYTES, 1, D, part, encode};

#if HAS_GEMV_INTEGER
INLINE void block_scales(const uint8_t *block, v8 scales[SUBS], v8 minima[SUBS]) {
    (void)minima;
    const float d = half_to_float(block + D);
    for (int i = 0; i < SUBS; i++) {
        const __m128i bytes = _mm_loadl_epi64((const void *)(block + SCALES + 8 * i));
        scales[i] = (v8)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)) * d;
    }
}
INLINE void read_integers(const uint8_t *block, int step, vh values[INTEGER_VECTORS]) {
    const int half = step / 4, group = step % 4;
    for (int v = 0; v < INTEGER_VECTORS; v++) {
        const vh low = nibbles_of(load_bytes(block + half * 64 + group % 2 * 32, v), group / 2);
        const vh q = with_bits(low, load_bytes(block + PAIRS + half * 32, v), 2 * group - 4, 3 << 4);
        values[v] = minus(q, ZERO);
    }
}
#if HAS_PLANES
INLINE __m512i byte_scales(const uint8_t *block, float *d, vf *minima) {
    const __m128i scales = _mm_loadu_si128((const void *)(block + SCALES));
    (void)minima;
    *d = half_to_float(block + D);
    return _mm512_zextsi256_si512(_mm256_set_m128i(_mm_cmpgt_epi8(_mm_setzero_si128(), scales), scales));
}
// Even vectors have the first eights of their sub-blocks, those of the second half of the block in turn
_Static_assert((int)ZERO == (int)EIGHTS_ZERO, "biases of x stand for the subtraction");
INLINE void read_bytes(const uint8_t *block, __m512i q[4]) {
    const __m512i a = _mm512_loadu_si512(block), b = _mm512_loadu_si512(block + 64), mask = _mm512_set1_epi8(15);
    const __m512i pa = _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)(block + PAIRS)));
    const __m512i pb = _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)(block + PAIRS + 32)));
    const __m512i low = _mm512_inserti64x4(_mm512_set1_epi32(4), _mm256_set1_epi32(2), 1);
    const __m512i high = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi32(30), 1);
    for (int i = 0; i < 2; i++) {
        const __m512i both = i ? _mm512_unpackhi_epi64(a, b) : _mm512_unpacklo_epi64(a, b);
        const __m512i pairs = i ? _mm512_unpackhi_epi64(pa, pb) : _mm512_unpacklo_epi64(pa, pb);
        const __m512i bits = _mm512_set1_epi8(3 << 4);
        const __m512i first = _mm512_and_si512(both, mask), second = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
        q[i] = _mm512_ternarylogic_epi64(first, _mm512_rolv_epi32(pairs, low), bits, 0xf8);
        q[2 + i] = _mm512_ternarylogic_epi64(second, _mm512_rolv_epi32(pairs, high), bits, 0xf8);
    }
}
#endif
static const integer_blocks INTEGERS = {
    .scales = block_scales,
    .read = read_integers,
    .sub_block = SUB_BLOCK,
    .bytes = BYTES,
#if HAS_PLANES
    .planes = {byte_scales, read_bytes, GEMV_EIGHTS},
#endif
};
#endif

#include "simd/weights/kernels.h"
const weight_kernels TIERED(weight_q6_k) = {dequantize, quantize, check, gemv, INTEGER_KERNELS, X_EIGHTS};
