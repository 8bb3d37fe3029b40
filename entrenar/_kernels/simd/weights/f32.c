// fp32.
#include "simd/weights/gemv.h"

static void dequantize(const matrix_view *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, float *out) {
    memcpy(out, (const float *)s->data + row * s->row_stride + k0, (size_t)count * sizeof(float));
}

INLINE void step(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes, vf values[STEP_VECTORS]) {
    (void)w, (void)row, (void)p;
    for (int v = 0; v < STEP_VECTORS; v++) values[v] = vload((const float *)bytes + v * VLEN);
}
static void gemv(const gemv_args *g) { gemv_by(g, (steps){step, STEP, 4 * STEP, 4}); }

const weight_kernels TIERED(weight_f32) = {.dequantize_row = dequantize, .gemv = gemv};
