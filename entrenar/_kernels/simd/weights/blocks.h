// What several weight types share: fp16 scales, runs of 16 columns, and the largest magnitude of a block.
#pragma once
#include "simd/vec.h"
#include "simd/weights/types.h"

enum { GGML_BLOCK = 32, K_BLOCK = 256 };  // columns of ggml's blocks without and with a K in their name
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

// values = columns [first, first + count) of a block: (0, 16), (16, 16) or (0, 32) in each 32 of them; `count` is a
// constant at every call, `first` too where blocks have 32 columns
typedef void dequantize_part(const uint8_t *block, int first, int count, vf *values);
// A block from fp32, whose largest magnitude is finite: QUANTIZE_* flags
typedef int encode_block(uint8_t *block, const float *x, float largest);

// What a type's file says of its blocks; constant at every call
typedef struct block_format {
    int columns, bytes;     // of a block; columns are a multiple of GGML_BLOCK
    int scales, scales_at;  // fp16 scales side by side, and the byte at which they begin
    dequantize_part *part;
    encode_block *encode;
} block_format;

INLINE const uint8_t *block_of(block_format f, const uint8_t *row, ptrdiff_t k) {
    return row + (size_t)k / (size_t)f.columns * (size_t)f.bytes;
}
// The first column of the 32 within the block that has column k
INLINE int group_of(block_format f, ptrdiff_t k) {
    return f.columns == GGML_BLOCK ? 0 : (int)((size_t)k % (size_t)f.columns) / GGML_BLOCK * GGML_BLOCK;
}

INLINE void store_part(dequantize_part part, const uint8_t *block, int first, int count, float *out) {
    vf values[GGML_BLOCK / VLEN];
    part(block, first, count, values);
    for (int v = 0; v < count / VLEN; v++) vstore(out + v * VLEN, values[v]);
}

// `count` of the 32 columns at `group`, from `first` of them on: exact halves go to `out`, other runs through a copy
INLINE void dequantize_some(dequantize_part part, const uint8_t *block, int group, ptrdiff_t first, ptrdiff_t count,
                            float *out) {
    float columns[GGML_BLOCK];
    if (count == 16 && first == 0) {
        store_part(part, block, group, 16, out);
    } else if (count == 16 && first == 16) {
        store_part(part, block, group + 16, 16, out);
    } else {
        if (first + count > 16) store_part(part, block, group + 16, 16, columns + 16);
        if (first < 16) store_part(part, block, group, 16, columns);
        memcpy(out, columns + first, (size_t)count * sizeof(float));
    }
}

// weight_kernels.dequantize_row
INLINE void dequantize_blocks(block_format f, const matrix_view *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count,
                              float *out) {
    const uint8_t *bytes = (const uint8_t *)s->data + stored_row(s, row) * s->row_stride;
    const ptrdiff_t first = k0 % GGML_BLOCK, end = k0 + count;
    ptrdiff_t k = k0;
    if (first) {
        const ptrdiff_t n = GGML_BLOCK - first < count ? GGML_BLOCK - first : count;
        dequantize_some(f.part, block_of(f, bytes, k), group_of(f, k), first, n, out);
        k += n, out += n;
    }
    for (; end - k >= GGML_BLOCK; k += GGML_BLOCK, out += GGML_BLOCK)
        store_part(f.part, block_of(f, bytes, k), group_of(f, k), GGML_BLOCK, out);
    if (end > k) dequantize_some(f.part, block_of(f, bytes, k), group_of(f, k), 0, end - k, out);
}

// 16 unsigned bytes, on every tier
typedef uint8_t vb16 __attribute__((vector_size(16)));
typedef uint8_t vb16_unaligned __attribute__((vector_size(16), aligned(1), may_alias));
INLINE vb16 load16(const uint8_t *bytes) { return *(const vb16_unaligned *)bytes; }
// bytes >> shift & mask, for a mask of 8 - shift bits at most; pairs of bytes are shifted, which x86 can
typedef uint16_t vh8 __attribute__((vector_size(16)));
INLINE vb16 bits_at(vb16 bytes, int shift, uint8_t mask) { return (vb16)((vh8)bytes >> (uint16_t)shift) & mask; }

// out = bytes minus zero, in whole vectors
INLINE void widen16(vb16 bytes, int32_t zero, vf *out) {
#if VLEN == 16
    out[0] = __builtin_convertvector((vi)_mm512_cvtepu8_epi32((__m128i)bytes) - zero, vf);
#elif VLEN == 8
    out[0] = __builtin_convertvector((vi)_mm256_cvtepu8_epi32((__m128i)bytes) - zero, vf);
    out[1] = __builtin_convertvector((vi)_mm256_cvtepu8_epi32(_mm_srli_si128((__m128i)bytes, 8)) - zero, vf);
#else
    float values[16];
    for (int i = 0; i < 16; i++) values[i] = (float)(bytes[i] - zero);
    for (int v = 0; v < 16 / VLEN; v++) out[v] = vload(values + v * VLEN);
#endif
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
#if VLEN == 16
    return _mm512_reduce_max_epi32((__m512i)largest);
#else
    int32_t result = 0;
    for (int i = 0; i < VLEN; i++)
        if (largest[i] > result) result = largest[i];
    return result;
#endif
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

// A block with the scale d = the value of largest magnitude / -zero: integers 0 to 2 zero - 1
INLINE int encode_signed(uint8_t *block, const float *x, float largest, int zero, int32_t values[GGML_BLOCK]) {
    const float d = largest_signed(x, GGML_BLOCK, largest) / (float)-zero;
    store_half(block, d);
    quantize_block(values, x, 0.0f, reciprocal_or_zero(d), (float)zero + 0.5f, 2 * zero - 1);
    return half_overflows(d) ? QUANTIZE_SCALE_OVERFLOW : QUANTIZE_OK;
}

// A block with the scale (largest - smallest value) / most and the smallest as its minimum: integers 0 to most
INLINE int encode_with_minimum(uint8_t *block, const float *x, int most, int32_t values[GGML_BLOCK]) {
    float minimum, maximum;
    extremes(x, &minimum, &maximum);
    const float d = (maximum - minimum) / (float)most;
    store_half(block, d);
    store_half(block + 2, minimum);
    quantize_block(values, x, minimum, reciprocal_or_zero(d), 0.5f, most);
    return half_overflows(d) || half_overflows(minimum) ? QUANTIZE_SCALE_OVERFLOW : QUANTIZE_OK;
}

// weight_kernels.quantize_row
INLINE int quantize_blocks(block_format f, void *to, const float *x, ptrdiff_t columns) {
    uint8_t *block = to;
    int status = QUANTIZE_OK;
    for (ptrdiff_t k = 0; k < columns; k += f.columns, x += f.columns, block += f.bytes) {
        const int32_t bits = largest_bits(x, f.columns);
        status |= bits >= INFINITY_BITS ? QUANTIZE_NOT_FINITE : f.encode(block, x, float_from_bits((uint32_t)bits));
    }
    return status;
}

// weight_kernels.check_row: no fp16 scale is infinite or NaN
INLINE int check_blocks(block_format f, const void *row, ptrdiff_t columns) {
    const uint8_t *scales = (const uint8_t *)row + f.scales_at;
    int found = 0;
    for (ptrdiff_t k = 0; k < columns; k += f.columns, scales += f.bytes)
        for (int i = 0; i < f.scales; i++) found |= (scales[2 * i + 1] & 0x7c) == 0x7c;  // exponent of all ones
    return found ? QUANTIZE_NOT_FINITE : QUANTIZE_OK;
}
