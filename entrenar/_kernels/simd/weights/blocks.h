// What several weight types share: fp16 scales, runs of 16 columns, and the largest magnitude of a block.
#pragma once
#include "simd/vec.h"
#include "simd/weights/types.h"

enum { GGML_BLOCK = 32 };  // columns of ggml's blocks without an i or k in their name
enum { INFINITY_BITS = 0x7f800000 };

// ---------------------------------------------------------------- dequantizing
// Exact for every fp16, subnormals, infinities and NaN included
INLINE float half_to_float(const uint8_t *bytes) {
    uint32_t h = (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8;
#if defined(__F16C__)
    return _cvtsh_ss((uint16_t)h);
#else
    uint32_t sign = (h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff, bits;
    float value = (float)mantissa * 0x1p-24f;  // subnormal: no exponent field
    if (exponent) {
        bits = (exponent == 31 ? 0x7f800000 : (exponent + 112) << 23) | mantissa << 13;
        memcpy(&value, &bits, 4);
    }
    memcpy(&bits, &value, 4);
    bits |= sign;
    memcpy(&value, &bits, 4);
    return value;
#endif
}

typedef int16_t int16_unaligned __attribute__((aligned(1), may_alias));
// Every lane the fp16 at `bytes`
INLINE vf half_everywhere(const uint8_t *bytes) {
#if VLEN == 16
    return (vf)_mm512_cvtph_ps(_mm256_set1_epi16(*(const int16_unaligned *)bytes));
#elif VLEN == 8
    return (vf)_mm256_cvtph_ps(_mm_set1_epi16(*(const int16_unaligned *)bytes));
#else
    return vset(half_to_float(bytes));
#endif
}
// Every lane of `first` the fp16 at `bytes`, of `second` the next one: converted together
INLINE void halves_everywhere(const uint8_t *bytes, vf *first, vf *second) {
#if VLEN == 16
    const __m512 both = _mm512_cvtph_ps((__m256i)_mm256_broadcast_ss((const float *)bytes));
    *first = (vf)_mm512_moveldup_ps(both), *second = (vf)_mm512_movehdup_ps(both);
#elif VLEN == 8
    const __m256 both = _mm256_cvtph_ps((__m128i)_mm_broadcast_ss((const float *)bytes));
    *first = (vf)_mm256_moveldup_ps(both), *second = (vf)_mm256_movehdup_ps(both);
#else
    *first = half_everywhere(bytes), *second = half_everywhere(bytes + 2);
#endif
}

// Keeps the compiler from fusing a product with the sum that follows: the reference rounds in between
#if defined(__SSE2__)
#define ROUNDED(v) __asm__("" : "+x"(v))
#elif defined(__aarch64__)
#define ROUNDED(v) __asm__("" : "+w"(v))
#else
#define ROUNDED(v) __asm__("" : "+m"(v))
#endif

// values = columns [first, first + count) of one of ggml's blocks: (0, 16), (16, 16) or (0, 32), constant at every call
typedef void dequantize_part(const uint8_t *block, int first, int count, vf *values);

INLINE void store_part(dequantize_part part, const uint8_t *block, int first, int count, float *out) {
    vf values[GGML_BLOCK / VLEN];
    part(block, first, count, values);
    for (int v = 0; v < count / VLEN; v++) vstore(out + v * VLEN, values[v]);
}

// `count` columns of a block from `first` on: exact halves go to `out`, other runs through a copy
INLINE void dequantize_some(dequantize_part part, const uint8_t *block, ptrdiff_t first, ptrdiff_t count, float *out) {
    float columns[GGML_BLOCK];
    if (count == 16 && first == 0) {
        store_part(part, block, 0, 16, out);
    } else if (count == 16 && first == 16) {
        store_part(part, block, 16, 16, out);
    } else {
        if (first + count > 16) store_part(part, block, 16, 16, columns + 16);
        if (first < 16) store_part(part, block, 0, 16, columns);
        memcpy(out, columns + first, (size_t)count * sizeof(float));
    }
}

// weight_kernels.dequantize_row of types whose blocks are ggml's
INLINE void dequantize_blocks(dequantize_part part, ptrdiff_t block_bytes, const matrix_view *s, ptrdiff_t row,
                              ptrdiff_t k0, ptrdiff_t count, float *out) {
    const uint8_t *block = (const uint8_t *)s->data + row * s->row_stride + k0 / GGML_BLOCK * block_bytes;
    const ptrdiff_t first = k0 % GGML_BLOCK;
    if (first) {
        const ptrdiff_t n = GGML_BLOCK - first < count ? GGML_BLOCK - first : count;
        dequantize_some(part, block, first, n, out);
        block += block_bytes, out += n, count -= n;
    }
    for (; count >= GGML_BLOCK; count -= GGML_BLOCK, block += block_bytes, out += GGML_BLOCK)
        store_part(part, block, 0, GGML_BLOCK, out);
    if (count > 0) dequantize_some(part, block, 0, count, out);
}

// ---------------------------------------------------------------- quantizing
INLINE float float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// Round to nearest, ties to even; overflow gives infinity. x is not NaN.
INLINE void store_half(uint8_t *bytes, float x) {
    uint32_t half;
#if defined(__F16C__)
    half = (uint16_t)_cvtss_sh(x, 0);
#else
    uint32_t bits, sign;
    memcpy(&bits, &x, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits >= 0x47800000) {  // 65536 and more
        half = 0x7c00;
    } else if (bits < 0x38800000) {  // subnormal: adding 0.5 leaves the mantissa in units of 2^-24, rounded to even
        float shifted = float_from_bits(bits) + 0.5f;
        memcpy(&half, &shifted, 4);
        half -= 0x3f000000;
    } else {  // a carry out of the mantissa belongs in the exponent
        half = (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13;
    }
    half |= sign;
#endif
    bytes[0] = (uint8_t)half;
    bytes[1] = (uint8_t)(half >> 8);
}
INLINE int half_overflows(float x) { return fabsf(x) >= 65520.0f; }

// max |x| as bits, which order like the floats; above INFINITY_BITS - 1 something is not finite
INLINE int32_t largest_bits(const float *x, ptrdiff_t n) {
    vi largest = viset(0);
    for (ptrdiff_t i = 0; i < n; i += VLEN) {
        vi bits = viload((const int32_t *)(x + i)) & 0x7fffffff, more = bits > largest;
        largest = (bits & more) | (largest & ~more);
    }
    int32_t result = 0;
    for (int i = 0; i < VLEN; i++)
        if (largest[i] > result) result = largest[i];
    return result;
}

// The value of largest magnitude with its sign: of several, the first
INLINE float largest_signed(const float *x, int n, float magnitude) {
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) == magnitude) return x[i];
    return x[0];
}

// min and max of a block
INLINE void extremes(const float *x, float *minimum, float *maximum) {
    vf low = vload(x), high = low;
    for (int i = VLEN; i < GGML_BLOCK; i += VLEN) {
        low = vmin(low, vload(x + i));
        high = vmax(high, vload(x + i));
    }
    *minimum = -vmaximum(-low) + 0.0f;  // + 0 makes a -0 positive
    *maximum = vmaximum(high);
}

// 1 / d, or 0 where d is 0 or so small that the reciprocal overflows (its fp16 is 0 in any case)
INLINE float reciprocal_or_zero(float d) {
    float reciprocal = d != 0.0f ? 1.0f / d : 0.0f;
    return fabsf(reciprocal) <= 3.402823466e38f ? reciprocal : 0.0f;
}

// A block as integers min(most, trunc((x - shift) * factor + half))
INLINE void quantize_block(int32_t values[GGML_BLOCK], const float *x, float shift, float factor, float half,
                           int32_t most) {
    for (int i = 0; i < GGML_BLOCK; i += VLEN) {
        vf product = (vload(x + i) - shift) * factor;
        ROUNDED(product);
        vi c = __builtin_convertvector(product + half, vi), over = c > most;
        vistore(values + i, (c & ~over) | (over & most));
    }
}

// QUANTIZE_NOT_FINITE where one of a row's blocks has an fp16 scale (of `scales` at its start) that is not finite
INLINE int check_scales(const uint8_t *blocks, ptrdiff_t count, ptrdiff_t block_bytes, int scales) {
    int found = 0;
    for (ptrdiff_t block = 0; block < count; block++, blocks += block_bytes)
        for (int i = 0; i < scales; i++) found |= (blocks[2 * i + 1] & 0x7c) == 0x7c;  // exponent of all ones
    return found ? QUANTIZE_NOT_FINITE : QUANTIZE_OK;
}
