// bfloat16: the upper half of an fp32.
#include "simd/weights/gemv.h"

INLINE void widen(const uint16_t *x, ptrdiff_t count, float *out) {
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

#include "simd/weights/widen.h"

const weight_kernels TIERED(weight_bf16) = {.dequantize_row = dequantize, .gemv = gemv};
