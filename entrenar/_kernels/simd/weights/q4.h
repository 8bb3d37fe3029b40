// Nibbles as ggml has them in blocks of 32 columns: the low ones are columns 0..15, the high ones columns 16..31.
#pragma once
#include "simd/weights/gemv.h"

// out = the 16 columns of one nibble (shift 0 or 4) of 16 bytes, minus zero, in whole vectors
INLINE void load_nibbles(const uint8_t *bytes, int shift, int32_t zero, vf *out) {
#if VLEN == 4
    float values[16];
    for (int i = 0; i < 16; i++) values[i] = (float)((bytes[i] >> shift & 15) - zero);
    for (int v = 0; v < 16 / VLEN; v++) out[v] = vload(values + v * VLEN);
#elif VLEN == 16
    const __m128i values =
        _mm_and_si128(_mm_srli_epi16(_mm_loadu_si128((const void *)bytes), shift), _mm_set1_epi8(15));
    out[0] = __builtin_convertvector((vi)_mm512_cvtepu8_epi32(values) - zero, vf);
#else
    // all in both halves, then four of them to a half: cheaper than across halves
    const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)bytes));
    const __m256i values = _mm256_and_si256(shift ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
    const __m256i first = _mm256_setr_epi8(0, -1, -1, -1, 1, -1, -1, -1, 2, -1, -1, -1, 3, -1, -1, -1,  //
                                           4, -1, -1, -1, 5, -1, -1, -1, 6, -1, -1, -1, 7, -1, -1, -1);
    const __m256i second = _mm256_setr_epi8(8, -1, -1, -1, 9, -1, -1, -1, 10, -1, -1, -1, 11, -1, -1, -1,  //
                                            12, -1, -1, -1, 13, -1, -1, -1, 14, -1, -1, -1, 15, -1, -1, -1);
    out[0] = __builtin_convertvector((vi)_mm256_shuffle_epi8(values, first) - zero, vf);
    out[1] = __builtin_convertvector((vi)_mm256_shuffle_epi8(values, second) - zero, vf);
#endif
}

#if HAS_GEMV_INTEGER
// The same of a whole block, as 16-bit integers
INLINE void load_nibbles_integer(const uint8_t *bytes, int zero, vh values[INTEGER_VECTORS]) {
    const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)bytes)),
                  minus = _mm256_set1_epi16((short)zero);
    const __m256i low = _mm256_and_si256(wide, _mm256_set1_epi16(15)), high = _mm256_srli_epi16(wide, 4);
    join(_mm256_sub_epi16(low, minus), _mm256_sub_epi16(high, minus), values);
}
#endif

INLINE void store_nibbles(uint8_t bytes[16], const int32_t values[GGML_BLOCK]) {
    for (int i = 0; i < 16; i++) bytes[i] = (uint8_t)((values[i] & 15) | (values[i + 16] & 15) << 4);
}
