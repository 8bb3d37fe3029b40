// What the products of a few rows share: steps of columns, and scales in every lane.
#pragma once
#include "simd/gemm.h"
#include "simd/vec.h"

enum { STEP = GEMV_STEP };
_Static_assert((int)GGML_BLOCK == STEP && NF4_BLOCK % STEP == 0 && INT16_BLOCK % STEP == 0,
               "a step would cross blocks");

// Bytes of a step of a row; `type` is a constant at every call, here and below
INLINE ptrdiff_t step_bytes(int type) {
    static const int bytes[] = {[WEIGHT_F32] = 4 * STEP,    [WEIGHT_BF16] = 2 * STEP,   [WEIGHT_NF4] = STEP / 2,
                                [WEIGHT_Q4_0] = Q4_0_BYTES, [WEIGHT_Q4_1] = Q4_1_BYTES, [WEIGHT_INT16] = 2 * STEP,
                                [WEIGHT_Q8_0] = Q8_0_BYTES};
    return bytes[type];
}

// The weights [first, first + count), four at a time for one row of x: BLOCK(rows, weights) with constants
_Static_assert(GEMV_ROWS == 4, "sums and cases are written out for 4 rows");
#define EVERY_BLOCK(BLOCK)                                                                                             \
    const ptrdiff_t end = first + count;                                                                               \
    if (rows == 1)                                                                                                     \
        for (; first + 4 <= end; first += 4) BLOCK(1, 4);                                                              \
    for (; first < end; first++) {                                                                                     \
        if (rows == 1) BLOCK(1, 1);                                                                                    \
        else if (rows == 2) BLOCK(2, 1);                                                                               \
        else if (rows == 3) BLOCK(3, 1);                                                                               \
        else if (rows == 4) BLOCK(4, 1);                                                                               \
    }

#define EVERY_QUANTIZED_TYPE(TYPE)                                                                                     \
    TYPE(WEIGHT_NF4) TYPE(WEIGHT_Q4_0) TYPE(WEIGHT_Q4_1) TYPE(WEIGHT_INT16) TYPE(WEIGHT_Q8_0)

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
