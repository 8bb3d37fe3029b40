// Q4_0, ggml's: 32 columns in 18 bytes, an fp16 scale d and 32 nibbles q (q4.h); weight = (q - 8) d.
#include "simd/weights/q4.h"

enum { BYTES = 18, ZERO = 8 };

INLINE void part(const uint8_t *block, int first, int count, vf *values) {
    const vf d = half_everywhere(block);
    if (first == 0) load_nibbles(block + 2, 0, ZERO, values);
    if (first + count > 16) load_nibbles(block + 2, 4, ZERO, values + (16 - first) / VLEN);
#pragma GCC unroll 8
    for (int v = 0; v < count / VLEN; v++) values[v] = values[v] * d;
}
static void dequantize(const matrix_view *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, float *out) {
    dequantize_blocks(part, BYTES, s, row, k0, count, out);
}

// d = the value of largest magnitude / -8
static int quantize(void *to, float *scales, const float *x, ptrdiff_t columns) {
    (void)scales;
    uint8_t *block = to;
    int status = QUANTIZE_OK;
    for (ptrdiff_t k = 0; k < columns; k += GGML_BLOCK, x += GGML_BLOCK, block += BYTES) {
        int32_t values[GGML_BLOCK], bits = largest_bits(x, GGML_BLOCK);
        if (bits >= INFINITY_BITS) {
            status |= QUANTIZE_NOT_FINITE;
            continue;
        }
        float d = largest_signed(x, GGML_BLOCK, float_from_bits((uint32_t)bits)) / -8.0f;
        if (half_overflows(d)) status |= QUANTIZE_SCALE_OVERFLOW;
        store_half(block, d);
        quantize_block(values, x, 0.0f, reciprocal_or_zero(d), ZERO + 0.5f, 15);
        store_nibbles(block + 2, values);
    }
    return status;
}

static int check(const void *values, ptrdiff_t columns) { return check_scales(values, columns / GGML_BLOCK, BYTES, 1); }

INLINE void step(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes, vf values[STEP_VECTORS]) {
    (void)w, (void)row, (void)p;
    part(bytes, 0, STEP, values);
}
static void gemv(const gemv_args *g) { gemv_by(g, (steps){step, BYTES, 0}); }

#if HAS_GEMV_INTEGER
INLINE void step_integer(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes,
                         vh values[INTEGER_VECTORS], vf *scale, vf *minimum) {
    (void)w, (void)row, (void)p, (void)minimum;
    *scale = half_everywhere(bytes);
    load_nibbles_integer(bytes + 2, ZERO, values);
}
static void gemv_integer(const gemv_args *g) { gemv_integer_by(g, (integer_steps){step_integer, BYTES, 0}); }
#endif

const weight_kernels TIERED(weight_q4_0) = {
    .dequantize_row = dequantize,
    .quantize_row = quantize,
    .check_row = check,
    .gemv = gemv,
#if HAS_GEMV_INTEGER
    .gemv_integer = gemv_integer,
#endif
};
