// The kernels of a type whose rows are blocks that hold their own fp16 scales. Its file includes this last, after
//   FORMAT    its block_format
//   INTEGERS  its integer_steps or integer_blocks, on tiers with HAS_GEMV_INTEGER
#include "simd/weights/gemv.h"

static void dequantize(const matrix_view *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, float *out) {
    dequantize_blocks(FORMAT, s, row, k0, count, out);
}
static int quantize(void *to, float *scales, const float *x, ptrdiff_t columns) {
    (void)scales;
    return quantize_blocks(FORMAT, to, x, columns);
}
static int check(const void *row, ptrdiff_t columns) { return check_blocks(FORMAT, row, columns); }

INLINE void step(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes, vf values[STEP_VECTORS]) {
    (void)w, (void)row;
    FORMAT.part(bytes, group_of(FORMAT, p), STEP, values);
}
static void gemv(const gemv_args *g) { gemv_by(g, (steps){step, FORMAT.columns, FORMAT.bytes, 0}); }

#if HAS_GEMV_INTEGER
static void gemv_integer(const gemv_args *g) {
    _Generic(INTEGERS, integer_steps: gemv_integer_by, integer_blocks: gemv_integer_blocks)(g, INTEGERS);
}
static void integers(const matrix_view *s, ptrdiff_t stored_row, ptrdiff_t k0, ptrdiff_t count, int16_t *values,
                     float *scales, float *minima) {
    _Generic(INTEGERS, integer_steps: integers_by, integer_blocks: integers_of_blocks)(
        s, stored_row, k0, count, INTEGERS, values, scales, minima);
}
#define INTEGER_KERNELS gemv_integer, integers
#else
#define INTEGER_KERNELS NULL, NULL
#endif
