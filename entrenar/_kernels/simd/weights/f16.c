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

static void dequantize(const matrix_view *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, float *out) {
    widen((const uint16_t *)s->data + row * s->row_stride + k0, count, out);
}

INLINE void step(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes, vf values[STEP_VECTORS]) {
    (void)w, (void)row, (void)p;
    float wide[STEP];
    widen((const uint16_t *)bytes, STEP, wide);
    for (int v = 0; v < STEP_VECTORS; v++) values[v] = vload(wide + v * VLEN);
}
static void gemv(const gemv_args *g) { gemv_by(g, (steps){step, STEP, 2 * STEP, 2}); }

const weight_kernels TIERED(weight_f16) = {.dequantize_row = dequantize, .gemv = gemv};
