// 32 columns of 5 bits as ggml has them: 4 bytes of their fifth bits, then 16 of their nibbles (q4.h).
#pragma once
#include "simd/weights/q4.h"

// out = the 16 columns from `first` (0 or 16) on, minus zero, in whole vectors
INLINE void load_fives(const uint8_t *bytes, int first, int32_t zero, vf *out) {
    static const int32_t BIT[16] = {1 << 0, 1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                                    1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
    const uint8_t *at = bytes + first / 8;
    const vi fifth = viset(at[0] | at[1] << 8);
    load_nibbles(bytes + 4, first ? 4 : 0, zero, out);
    for (int v = 0; v < 16 / VLEN; v++) {
        const vi set = (fifth & viload(BIT + v * VLEN)) != 0;
        out[v] += (vf)(set & (vi)vset(16.0f));
    }
}

#if HAS_GEMV_INTEGER
// The same of a whole block, as 16-bit integers
INLINE void load_fives_integer(const uint8_t *bytes, int zero, vh values[INTEGER_VECTORS]) {
    load_nibbles_integer(bytes + 4, zero, values);
#if VLEN == 16
    uint32_t fifth;
    memcpy(&fifth, bytes, 4);
    values[0] = _mm512_mask_add_epi16(values[0], fifth, values[0], _mm512_set1_epi16(16));
#else
    const __m256i bit = _mm256_setr_epi16(1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8,
                                          1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, (short)(1 << 15));
    for (int v = 0; v < 2; v++) {
        const __m256i fifth = _mm256_set1_epi16((short)(bytes[2 * v] | bytes[2 * v + 1] << 8));
        const __m256i set = _mm256_cmpeq_epi16(_mm256_and_si256(fifth, bit), bit);
        values[v] = _mm256_add_epi16(values[v], _mm256_and_si256(set, _mm256_set1_epi16(16)));
    }
#endif
}
#endif

INLINE void store_fives(uint8_t bytes[20], const int32_t values[GGML_BLOCK]) {
    for (int i = 0; i < 4; i++) {
        bytes[i] = 0;
        for (int j = 0; j < 8; j++) bytes[i] |= (uint8_t)((values[8 * i + j] >> 4 & 1) << j);
    }
    store_nibbles(bytes + 4, values);
}
