// The source of a weight matrix (rows x columns): fp32, bf16, or codes of 4, 8 or 16 bits; how a run of a row becomes floats.
//
// NF4 (Dettmers et al., "QLoRA", arXiv 2305.14314): two codes a byte, the first in the high nibble; one absmax for each
// 64 columns, itself fp32 or 8-bit ("double quantization": absmax = map[code] * second_absmax[block / 256] + offset).
// Q4_0 and Q4_1 are ggml's block formats: 32 columns in 18 or 20 bytes, fp16 scale d, (Q4_1: fp16 minimum m,) then 16
// bytes whose low nibbles are columns 0..15 and whose high nibbles are columns 16..31; (code - 8) d, or code d + m. Q8_0 is
// ggml's too: d, then 32 signed bytes.
// INT16 is what the 16-bit integer products read as it is: for each 64 columns one fp32 scale and codes in +-4095.
#pragma once
#include <stddef.h>
#include <stdint.h>

enum {
    WEIGHT_F32 = 0,
    WEIGHT_BF16 = 1,
    WEIGHT_NF4 = 2,
    WEIGHT_Q4_0 = 3,
    WEIGHT_Q4_1 = 4,
    WEIGHT_INT16 = 5,
    WEIGHT_Q8_0 = 6
};
enum { INT16_BLOCK = 64, INT16_LIMIT = 4095 };
enum { NF4_BLOCK = 64, NF4_SECOND_BLOCK = 256, GGML_BLOCK = 32, Q4_0_BYTES = 18, Q4_1_BYTES = 20, Q8_0_BYTES = 34 };

typedef struct matrix_view {
    int type;              // WEIGHT_*
    const void *data;      // first row
    ptrdiff_t row_stride;  // between rows: elements for fp32 and bf16, bytes for codes
    const float *absmax;   // NF4: of each block; where quantized_absmax is set, of each 256 blocks. INT16: the scales
    const uint8_t *quantized_absmax;  // NF4 with double quantization: 8-bit code of each block's absmax, else NULL
    const float *absmax_map;          // the 256 values of quantized_absmax
    float absmax_offset;
    ptrdiff_t columns;  // of the whole matrix; a multiple of the block size
} matrix_view;

#ifdef TIER  // the rest is for micro-kernels, compiled once per tier
#include "simd/vec.h"

// The 16 values of NormalFloat4 as bitsandbytes rounds them.
static const float NF4_VALUES[16] = {-1.0f,
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
INLINE float nf4_absmax(const matrix_view *s, ptrdiff_t block) {
    if (!s->quantized_absmax) return s->absmax[block];
    float product = s->absmax_map[s->quantized_absmax[block]] * s->absmax[block / NF4_SECOND_BLOCK];
    ROUNDED(product);
    return product + s->absmax_offset;
}

// out = NF4_VALUES of `count` (16 or 32) codes in count / 2 bytes, in whole vectors
INLINE void nf4_values(const uint8_t *bytes, int count, vf *out) {
#if VLEN == 16
    const __m128i mask = _mm_set1_epi8(15),
                  pairs = count == 16 ? _mm_loadl_epi64((const void *)bytes) : _mm_loadu_si128((const void *)bytes);
    const __m128i first = _mm_and_si128(_mm_srli_epi16(pairs, 4), mask), second = _mm_and_si128(pairs, mask);
    const __m512 table = _mm512_loadu_ps(NF4_VALUES);
    out[0] = (vf)_mm512_permutexvar_ps(_mm512_cvtepu8_epi32(_mm_unpacklo_epi8(first, second)), table);
    if (count == 32) out[1] = (vf)_mm512_permutexvar_ps(_mm512_cvtepu8_epi32(_mm_unpackhi_epi8(first, second)), table);
#elif VLEN == 8
    // one lookup for each byte of a float: NF4_VALUES transposed, least significant bytes first
    static const uint8_t table[4][16] = {
        {0x00, 0xb1, 0x30, 0xa0, 0x4d, 0x3f, 0x71, 0x00, 0xff, 0xe3, 0xdd, 0x3a, 0xb8, 0xab, 0xb3, 0x00},
        {0x00, 0x39, 0x6b, 0x32, 0xa2, 0x35, 0x78, 0x00, 0xfa, 0xca, 0x04, 0x03, 0xa4, 0x07, 0x13, 0x00},
        {0x80, 0x32, 0x06, 0xca, 0x91, 0x3d, 0xba, 0x00, 0xa2, 0x24, 0x7c, 0xad, 0xe1, 0x10, 0x39, 0x80},
        {0xbf, 0xbf, 0xbf, 0xbe, 0xbe, 0xbe, 0xbd, 0x00, 0x3d, 0x3e, 0x3e, 0x3e, 0x3e, 0x3f, 0x3f, 0x3f}};
    // each byte twice: in the low half of the register columns 0-3, 8-11, ... of the 32, in the high half 4-7, 12-15, ...
    const __m256i twice = _mm256_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13, 2, 2, 3, 3, 6, 6, 7, 7,
                                           10, 10, 11, 11, 14, 14, 15, 15);
    const __m128i pairs = count == 16 ? _mm_loadl_epi64((const void *)bytes) : _mm_loadu_si128((const void *)bytes);
    const __m256i wide = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(pairs), twice);
    const __m256i codes = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(wide, 4), _mm256_set1_epi16(0x000f)),
                                          _mm256_and_si256(wide, _mm256_set1_epi16(0x0f00)));
    __m256i byte[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        byte[i] = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table[i])), codes);
    const __m256i low = _mm256_unpacklo_epi8(byte[0], byte[1]), high = _mm256_unpacklo_epi8(byte[2], byte[3]);
    out[0] = (vf)_mm256_unpacklo_epi16(low, high);
    out[1] = (vf)_mm256_unpackhi_epi16(low, high);
    if (count == 32) {
        const __m256i lower = _mm256_unpackhi_epi8(byte[0], byte[1]), higher = _mm256_unpackhi_epi8(byte[2], byte[3]);
        out[2] = (vf)_mm256_unpacklo_epi16(lower, higher);
        out[3] = (vf)_mm256_unpackhi_epi16(lower, higher);
    }
#else
    float values[32];
    for (int i = 0; i < count / 2; i++) {
        values[2 * i] = NF4_VALUES[bytes[i] >> 4];
        values[2 * i + 1] = NF4_VALUES[bytes[i] & 15];
    }
    for (int i = 0; i < count / VLEN; i++) out[i] = vload(values + i * VLEN);
#endif
}

// out = the codes of one nibble (shift 0 or 4) of 16 bytes, minus zero, in whole vectors
INLINE void q4_values(const uint8_t *bytes, int shift, int32_t zero, vf *out) {
#if VLEN == 16
    const __m128i codes = _mm_and_si128(_mm_srli_epi16(_mm_loadu_si128((const void *)bytes), shift), _mm_set1_epi8(15));
    out[0] = __builtin_convertvector((vi)_mm512_cvtepu8_epi32(codes) - zero, vf);
#elif VLEN == 8
    // all in both halves, then spread within them: cheaper than across
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)bytes));
    const __m256i codes = _mm256_and_si256(shift ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
#define SPREAD(i) i, -1, -1, -1, i + 1, -1, -1, -1, i + 2, -1, -1, -1, i + 3, -1, -1, -1
    out[0] = __builtin_convertvector((vi)_mm256_shuffle_epi8(codes, _mm256_setr_epi8(SPREAD(0), SPREAD(4))) - zero, vf);
    out[1] =
        __builtin_convertvector((vi)_mm256_shuffle_epi8(codes, _mm256_setr_epi8(SPREAD(8), SPREAD(12))) - zero, vf);
#undef SPREAD
#else
    float values[16];
    for (int i = 0; i < 16; i++) values[i] = (float)((bytes[i] >> shift & 15) - zero);
    for (int v = 0; v < 16 / VLEN; v++) out[v] = vload(values + v * VLEN);
#endif
}

// out = `vectors` whole vectors of signed bytes
INLINE void int8_values(const uint8_t *bytes, int vectors, vf *out) {
    for (int v = 0; v < vectors; v++, bytes += VLEN) {
#if VLEN == 16
        out[v] = __builtin_convertvector((vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)bytes)), vf);
#elif VLEN == 8
        out[v] = __builtin_convertvector((vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)bytes)), vf);
#else
        out[v] = (vf){(int8_t)bytes[0], (int8_t)bytes[1], (int8_t)bytes[2], (int8_t)bytes[3]};
#endif
    }
}

INLINE void bf16_dequantize(const uint16_t *x, ptrdiff_t count, float *out) {
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

// `count` (16 or 32) columns from 8 or 16 bytes
INLINE void nf4_dequantize(const uint8_t *bytes, int count, float scale, float *out) {
    vf values[32 / VLEN];
    nf4_values(bytes, count, values);
    for (int i = 0; i < count / VLEN; i++) vstore(out + i * VLEN, values[i] * scale);
}
// The 16 columns from k (a multiple of 16) of a row of ggml's blocks
INLINE void q4_group(const uint8_t *row, ptrdiff_t k, int minimum, float *out) {
    const uint8_t *block = row + k / GGML_BLOCK * (minimum ? Q4_1_BYTES : Q4_0_BYTES);
    const float d = half_to_float(block), m = minimum ? half_to_float(block + 2) : -0.0f;  // adding -0 changes nothing
    vf values[16 / VLEN];
    q4_values(block + (minimum ? 4 : 2), k & 16 ? 4 : 0, minimum ? 0 : 8, values);
    for (int i = 0; i < 16 / VLEN; i++) vstore(out + i * VLEN, values[i] * d + m);
}
INLINE void q8_group(const uint8_t *row, ptrdiff_t k, float *out) {
    const uint8_t *block = row + k / GGML_BLOCK * Q8_0_BYTES;
    const float d = half_to_float(block);
    vf values[16 / VLEN];
    int8_values(block + 2 + k % GGML_BLOCK, 16 / VLEN, values);
    for (int i = 0; i < 16 / VLEN; i++) vstore(out + i * VLEN, values[i] * d);
}
INLINE void dequantize_group(const matrix_view *s, const uint8_t *row, ptrdiff_t first_block, ptrdiff_t k, float *out) {
    if (s->type == WEIGHT_NF4) nf4_dequantize(row + k / 2, 16, nf4_absmax(s, first_block + k / NF4_BLOCK), out);
    else if (s->type == WEIGHT_Q8_0) q8_group(row, k, out);
    else q4_group(row, k, s->type == WEIGHT_Q4_1, out);
}

// out = 16-bit codes, `vectors` whole vectors of them
INLINE void int16_values(const int16_t *codes, int vectors, vf *out) {
    for (int v = 0; v < vectors; v++, codes += VLEN) {
#if VLEN == 16
        out[v] = __builtin_convertvector((vi)_mm512_cvtepi16_epi32(_mm256_loadu_si256((const void *)codes)), vf);
#elif VLEN == 8
        out[v] = __builtin_convertvector((vi)_mm256_cvtepi16_epi32(_mm_loadu_si128((const void *)codes)), vf);
#else
        out[v] = (vf){codes[0], codes[1], codes[2], codes[3]};
#endif
    }
}
// The columns [k0, k0 + count) of row `row` of 16-bit codes
INLINE void int16_dequantize_row(const matrix_view *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, float *out) {
    const int16_t *codes = (const int16_t *)((const uint8_t *)s->data + row * s->row_stride);
    const float *scales = s->absmax + row * (s->columns / INT16_BLOCK);
    for (ptrdiff_t k = k0, end = k0 + count; k < end;) {
        const float scale = scales[k / INT16_BLOCK];
        ptrdiff_t stop = (k / INT16_BLOCK + 1) * INT16_BLOCK;
        if (stop > end) stop = end;
        for (; k + VLEN <= stop; k += VLEN) {
            vf values;
            int16_values(codes + k, 1, &values);
            vstore(out + (k - k0), values * scale);
        }
        for (; k < stop; k++) out[k - k0] = (float)codes[k] * scale;
    }
}

// out[0 .. count) = columns [k0, k0 + count) of one row, any k0 and count within the row; fastest at multiples of 16
INLINE void dequantize_row(const matrix_view *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, float *out) {
    if (s->type == WEIGHT_F32) {
        memcpy(out, (const float *)s->data + row * s->row_stride + k0, (size_t)count * sizeof(float));
        return;
    }
    if (s->type == WEIGHT_BF16) {
        bf16_dequantize((const uint16_t *)s->data + row * s->row_stride + k0, count, out);
        return;
    }
    if (s->type == WEIGHT_INT16) {
        int16_dequantize_row(s, row, k0, count, out);
        return;
    }
    const uint8_t *bytes = (const uint8_t *)s->data + row * s->row_stride;
    ptrdiff_t first_block = row * (s->columns / NF4_BLOCK), k = k0, end = k0 + count;
    float group[16];
    if (k & 15 && k < end) {  // the rest of a group that starts before k0
        ptrdiff_t skip = k & 15, n = 16 - skip < count ? 16 - skip : count;
        dequantize_group(s, bytes, first_block, k - skip, group);
        memcpy(out, group + skip, (size_t)n * sizeof(float));
        k += n;
    }
    if (s->type == WEIGHT_NF4) {
        while (k + 16 <= end) {
            float scale = nf4_absmax(s, first_block + k / NF4_BLOCK);
            ptrdiff_t stop = (k / NF4_BLOCK + 1) * NF4_BLOCK;
            if (stop > end) stop = end;
            for (; k + 32 <= stop; k += 32) nf4_dequantize(bytes + k / 2, 32, scale, out + (k - k0));
            for (; k + 16 <= stop; k += 16) nf4_dequantize(bytes + k / 2, 16, scale, out + (k - k0));
        }
    } else if (s->type == WEIGHT_Q8_0) {
        for (; k + 16 <= end; k += 16) q8_group(bytes, k, out + (k - k0));
    } else {
        for (; k + 16 <= end; k += 16) q4_group(bytes, k, s->type == WEIGHT_Q4_1, out + (k - k0));
    }
    if (k < end) {
        dequantize_group(s, bytes, first_block, k, group);
        memcpy(out + (k - k0), group, (size_t)(end - k) * sizeof(float));
    }
}
#endif
