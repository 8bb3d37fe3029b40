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

// d = largest magnitude / 127, q = x / d to the nearest, ties away from zero
INLINE int encode(uint8_t *block, const float *x, float largest) {
    const float d = largest / 127.0f, factor = reciprocal_or_zero(d);
    store_half(block, d);
    for (int i = 0; i < GGML_BLOCK; i++) block[2 + i] = (uint8_t)(int8_t)roundf(x[i] * factor);
    return half_overflows(d) ? QUANTIZE_SCALE_OVERFLOW : QUANTIZE_OK;
}
static const block_format FORMAT = {GGML_BLOCK, BYTES, 1, 0, part, encode};

#if HAS_GEMV_INTEGER
INLINE void step_integer(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes,
                         vh values[INTEGER_VECTORS], vf *scale, vf *minimum) {
    (void)w, (void)row, (void)p, (void)minimum;
    *scale = half_everywhere(bytes);
    for (int v = 0; v < INTEGER_VECTORS; v++) values[v] = vhbytes(bytes + 2 + v * 2 * VLEN);
}
static const integer_steps INTEGERS = {step_integer, BYTES, 0};
#endif

#include "simd/weights/kernels.h"
const weight_kernels TIERED(weight_q8_0) = {dequantize, quantize, check, gemv, INTEGER_KERNELS};
