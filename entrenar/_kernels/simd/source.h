// The source of a weight matrix (rows x columns): fp32, bf16, 4-bit or 16-bit codes; how a run of a row becomes floats.
//
// NF4 (Dettmers et al., "QLoRA", arXiv 2305.14314): two codes a byte, the first in the high nibble; one absmax for each
// 64 columns, itself fp32 or 8-bit ("double quantization": absmax = map[code] * second_absmax[block / 256] + offset).
// Q4_0 and Q4_1 are ggml's block formats: 32 columns in 18 or 20 bytes, fp16 scale d, (Q4_1: fp16 minimum m,) then 16
// bytes whose low nibbles are columns 0..15 and whose high nibbles are columns 16..31; (code - 8) d, or code d + m.
// INT16 is what the 16-bit integer products read as it is: for each 64 columns one fp32 scale and codes in +-4095.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum { SOURCE_F32 = 0, SOURCE_BF16 = 1, SOURCE_NF4 = 2, SOURCE_Q4_0 = 3, SOURCE_Q4_1 = 4, SOURCE_INT16 = 5 };
enum { INT16_BLOCK = 64, INT16_LIMIT = 4095 };
enum { NF4_BLOCK = 64, NF4_SECOND_BLOCK = 256, Q4_BLOCK = 32, Q4_0_BYTES = 18, Q4_1_BYTES = 20 };

typedef struct weight_source {
    int kind;                     // SOURCE_*
    const void *data;             // first row
    ptrdiff_t row_stride;         // between rows: elements for fp32 and bf16, bytes for codes
    const float *absmax;          // NF4: of each block; where absmax_codes is set, of each 256 blocks. INT16: the scales
    const uint8_t *absmax_codes;  // NF4 with double quantization: 8-bit code of each block's absmax, else NULL
    const float *absmax_map;      // the 256 values of absmax_codes
    float absmax_offset;
    ptrdiff_t columns;            // of the whole matrix; a multiple of the block size
} weight_source;

#ifdef TIER  // the rest is for micro-kernels, compiled once per tier
#include "simd/vec.h"

// The 16 values of NormalFloat4 as bitsandbytes rounds them.
static const float NF4_VALUES[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// Exact for every fp16, subnormals, infinities and NaN included.
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

// Keeps the compiler from fusing a product with the sum that follows: the reference rounds in between.
#if defined(__SSE2__)
#define ROUNDED(v) __asm__("" : "+x"(v))
#elif defined(__aarch64__)
#define ROUNDED(v) __asm__("" : "+w"(v))
#else
#define ROUNDED(v) __asm__("" : "+m"(v))
#endif

// The absmax of block number `block` of the whole matrix, the same bits on every tier
INLINE float nf4_absmax(const weight_source *s, ptrdiff_t block) {
    if (!s->absmax_codes) return s->absmax[block];
    float product = s->absmax_map[s->absmax_codes[block]] * s->absmax[block / NF4_SECOND_BLOCK];
    ROUNDED(product);
    return product + s->absmax_offset;
}

// 16 columns from 8 bytes: out[i] = NF4_VALUES[code i] * scale
INLINE void nf4_decode16(const uint8_t *bytes, float scale, float *out) {
#if VLEN == 16 || VLEN == 8
    __m128i pairs = _mm_loadl_epi64((const __m128i *)bytes), mask = _mm_set1_epi8(15);
    __m128i codes = _mm_unpacklo_epi8(_mm_and_si128(_mm_srli_epi16(pairs, 4), mask), _mm_and_si128(pairs, mask));
#if VLEN == 16
    __m512 values = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), _mm512_loadu_ps(NF4_VALUES));
    vstore(out, (vf)values * scale);
#else
    __m256 low = _mm256_loadu_ps(NF4_VALUES), high = _mm256_loadu_ps(NF4_VALUES + 8);
    for (int i = 0; i < 2; i++) {
        __m256i index = _mm256_cvtepu8_epi32(i ? _mm_srli_si128(codes, 8) : codes);
        __m256 from_high = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));  // sign bit: codes 8..15
        __m256 below = _mm256_permutevar8x32_ps(low, index), above = _mm256_permutevar8x32_ps(high, index);
        vstore(out + 8 * i, (vf)_mm256_blendv_ps(below, above, from_high) * scale);
    }
#endif
#else
    for (int i = 0; i < 8; i++) {
        out[2 * i] = NF4_VALUES[bytes[i] >> 4] * scale;
        out[2 * i + 1] = NF4_VALUES[bytes[i] & 15] * scale;
    }
#endif
}

// 16 columns from one nibble (shift 0 or 4) of 16 bytes: out[i] = (code i - zero) * d + m
INLINE void q4_decode16(const uint8_t *bytes, int shift, int32_t zero, float d, float m, float *out) {
#if VLEN == 16 || VLEN == 8
    __m128i codes = _mm_and_si128(_mm_srli_epi16(_mm_loadu_si128((const __m128i *)bytes), shift), _mm_set1_epi8(15));
#if VLEN == 16
    __m512 values = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_cvtepu8_epi32(codes), _mm512_set1_epi32(zero)));
    vstore(out, (vf)values * d + m);
#else
    for (int i = 0; i < 2; i++) {
        __m256i index = _mm256_cvtepu8_epi32(i ? _mm_srli_si128(codes, 8) : codes);
        vstore(out + 8 * i, (vf)_mm256_cvtepi32_ps(_mm256_sub_epi32(index, _mm256_set1_epi32(zero))) * d + m);
    }
#endif
#else
    for (int i = 0; i < 16; i++) out[i] = (float)((bytes[i] >> shift & 15) - zero) * d + m;
#endif
}

INLINE void bf16_decode(const uint16_t *x, ptrdiff_t count, float *out) {
    ptrdiff_t i = 0;
#if VLEN == 16
    for (; i + 16 <= count; i += 16)
        vstore(out + i, (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(x + i))), 16));
#elif VLEN == 8
    for (; i + 8 <= count; i += 8)
        vstore(out + i, (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(x + i))), 16));
#endif
    for (; i < count; i++) {
        uint32_t bits = (uint32_t)x[i] << 16;
        memcpy(out + i, &bits, 4);
    }
}

// The 16 columns from k (a multiple of 16) of a 4-bit row
INLINE void q4_group(const uint8_t *row, ptrdiff_t k, int minimum, float *out) {
    const uint8_t *block = row + k / Q4_BLOCK * (minimum ? Q4_1_BYTES : Q4_0_BYTES);
    int shift = k & 16 ? 4 : 0;
    if (minimum) q4_decode16(block + 4, shift, 0, half_to_float(block), half_to_float(block + 2), out);
    else q4_decode16(block + 2, shift, 8, half_to_float(block), -0.0f, out);  // adding -0 changes nothing
}
INLINE void source_group(const weight_source *s, const uint8_t *row, ptrdiff_t first_block, ptrdiff_t k, float *out) {
    if (s->kind == SOURCE_NF4) nf4_decode16(row + k / 2, nf4_absmax(s, first_block + k / NF4_BLOCK), out);
    else q4_group(row, k, s->kind == SOURCE_Q4_1, out);
}

// The columns [k0, k0 + count) of row `row` of 16-bit codes
INLINE void int16_decode(const weight_source *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, float *out) {
    const int16_t *codes = (const int16_t *)((const uint8_t *)s->data + row * s->row_stride);
    const float *scales = s->absmax + row * (s->columns / INT16_BLOCK);
    for (ptrdiff_t k = k0, end = k0 + count; k < end;) {
        const float scale = scales[k / INT16_BLOCK];
        ptrdiff_t stop = (k / INT16_BLOCK + 1) * INT16_BLOCK;
        if (stop > end) stop = end;
#if VLEN == 16
        for (; k + 16 <= stop; k += 16)
            vstore(out + (k - k0), (vf)_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const void *)(codes + k)))) * scale);
#elif VLEN == 8
        for (; k + 8 <= stop; k += 8)
            vstore(out + (k - k0), (vf)_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const void *)(codes + k)))) * scale);
#endif
        for (; k < stop; k++) out[k - k0] = (float)codes[k] * scale;
    }
}

// out[0 .. count) = columns [k0, k0 + count) of one row, any k0 and count within the row; fastest at multiples of 16
INLINE void source_decode(const weight_source *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, float *out) {
    if (s->kind == SOURCE_F32) {
        memcpy(out, (const float *)s->data + row * s->row_stride + k0, (size_t)count * sizeof(float));
        return;
    }
    if (s->kind == SOURCE_BF16) {
        bf16_decode((const uint16_t *)s->data + row * s->row_stride + k0, count, out);
        return;
    }
    if (s->kind == SOURCE_INT16) {
        int16_decode(s, row, k0, count, out);
        return;
    }
    const uint8_t *bytes = (const uint8_t *)s->data + row * s->row_stride;
    ptrdiff_t first_block = row * (s->columns / NF4_BLOCK), k = k0, end = k0 + count;
    float group[16];
    if (k & 15 && k < end) {  // the rest of a group that starts before k0
        ptrdiff_t skip = k & 15, n = 16 - skip < count ? 16 - skip : count;
        source_group(s, bytes, first_block, k - skip, group);
        memcpy(out, group + skip, (size_t)n * sizeof(float));
        k += n;
    }
    if (s->kind == SOURCE_NF4) {
        while (k + 16 <= end) {
            float scale = nf4_absmax(s, first_block + k / NF4_BLOCK);
            ptrdiff_t stop = (k / NF4_BLOCK + 1) * NF4_BLOCK;
            if (stop > end) stop = end;
            for (; k + 16 <= stop; k += 16) nf4_decode16(bytes + k / 2, scale, out + (k - k0));
        }
    } else {
        for (; k + 16 <= end; k += 16) q4_group(bytes, k, s->kind == SOURCE_Q4_1, out + (k - k0));
    }
    if (k < end) {
        source_group(s, bytes, first_block, k, group);
        memcpy(out + (k - k0), group, (size_t)(end - k) * sizeof(float));
    }
}
#endif
