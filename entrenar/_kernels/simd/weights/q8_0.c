// Q8_0, ggml's: 32 columns in 34 bytes, an fp16 scale d and 32 signed bytes q; weight = q d.
#include "simd/weights/gemv.h"

enum { BYTES = 34 };

// out = `vectors` whole vectors of signed bytes
INLINE void load_values(const uint8_t *bytes, int vectors, vf *out) {
    for (int v = 0; v < vectors; v++, bytes += VLEN) {
#if VLEN == 4
        out[v] = (vf){(int8_t)bytes[0], (int8_t)bytes[1], (int8_t)bytes[2], (int8_t)bytes[3]};
#elif VLEN == 16
        out[v] = __builtin_convertvector((vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)bytes)), vf);
#else
        out[v] = __builtin_convertvector((vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)bytes)), vf);
#endif
    }
}

INLINE void part(const uint8_t *block, int first, int count, vf *values) {
    const vf d = half_everywhere(block);
    load_values(block + 2 + first, count / VLEN, values);
#pragma GCC unroll 8
    for (int v = 0; v < count / VLEN; v++) values[v] = values[v] * d;
}
static void dequantize(const matrix_view *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, float *out) {
    dequantize_blocks(part, BYTES, s, row, k0, count, out);
}

// d = largest magnitude / 127, q = x / d to the nearest, ties away from zero
static int quantize(void *to, float *scales, const float *x, ptrdiff_t columns) {
    (void)scales;
    uint8_t *block = to;
    int status = QUANTIZE_OK;
    for (ptrdiff_t k = 0; k < columns; k += GGML_BLOCK, x += GGML_BLOCK, block += BYTES) {
        int32_t bits = largest_bits(x, GGML_BLOCK);
        if (bits >= INFINITY_BITS) {
            status |= QUANTIZE_NOT_FINITE;
            continue;
        }
        float d = float_from_bits((uint32_t)bits) / 127.0f, factor = reciprocal_or_zero(d);
        if (half_overflows(d)) status |= QUANTIZE_SCALE_OVERFLOW;
        store_half(block, d);
        for (int i = 0; i < GGML_BLOCK; i++) block[2 + i] = (uint8_t)(int8_t)roundf(x[i] * factor);
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
    for (int v = 0; v < INTEGER_VECTORS; v++) values[v] = vhbytes(bytes + 2 + v * 2 * VLEN);
}
static void gemv_integer(const gemv_args *g) { gemv_integer_by(g, (integer_steps){step_integer, BYTES, 0}); }
#endif

const weight_kernels TIERED(weight_q8_0) = {
    .dequantize_row = dequantize,
    .quantize_row = quantize,
    .check_row = check,
    .gemv = gemv,
#if HAS_GEMV_INTEGER
    .gemv_integer = gemv_integer,
#endif
};
