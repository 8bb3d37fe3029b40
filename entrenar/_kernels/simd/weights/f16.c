// float16: IEEE 754's binary16. Every value is one of fp32.
#include "simd/weights/gemv.h"

INLINE void widen(const uint16_t *x, ptrdiff_t count, float *out) {
    ptrdiff_t i = 0;
#if VLEN == 16
    for (; i + 16 <= count; i += 16) vstore(out + i, (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)(x + i))));
#elif VLEN == 8
    for (; i + 8 <= count; i += 8) vstore(out + i, (vf)_mm256_cvtph_ps(_mm_loadu_si128((const void *)(x + i))));
#endif
    for (; i < count; i++) out[i] = half_to_float((const uint8_t *)(x + i));
}

#include "simd/weights/widen.h"

const weight_kernels TIERED(weight_f16) = {.dequantize_row = dequantize, .gemv = gemv};
