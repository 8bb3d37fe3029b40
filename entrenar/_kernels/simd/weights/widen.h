// The kernels of a weight type without blocks, whose values are each widened to fp32. Define before including:
//     widen(x, count, out)    `count` values of the type as fp32
#include "simd/weights/gemv.h"

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
