// IQ4_NL, ggml's: 32 columns in 18 bytes, an fp16 scale d and 32 nibbles, of which the low ones are columns 0..15;
// weight = d value, one of 16 (iq4.h).
#include "simd/weights/iq4.h"

enum { BYTES = 18 };

INLINE void part(const uint8_t *block, int first, int count, vf *values) {
    const vf d = half_everywhere(block);
    if (first == 0) load_iq4(block + 2, 0, values);
    if (first + count > 16) load_iq4(block + 2, 4, values + (16 - first) / VLEN);
#pragma GCC unroll 8
    for (int v = 0; v < count / VLEN; v++) values[v] = values[v] * d;
}

INLINE int encode(uint8_t *block, const float *x, float largest) {
    (void)largest;
    const float scale = fit_iq4(x);
    if (half_overflows(scale)) return QUANTIZE_SCALE_OVERFLOW;
    store_iq4(block + 2, x, stored_half(block, scale));
    return QUANTIZE_OK;
}
static const block_format FORMAT = {GGML_BLOCK, BYTES, 1, 0, part, encode};

#if HAS_GEMV_INTEGER
INLINE void step_integer(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes,
                         vh values[INTEGER_VECTORS], vf *scale, vf *minimum) {
    (void)w, (void)row, (void)p, (void)minimum;
    *scale = half_everywhere(bytes);
    load_iq4_integer(bytes + 2, values);
}
static const integer_steps INTEGERS = {step_integer, BYTES, 0};
#endif

#include "simd/weights/kernels.h"
const weight_kernels TIERED(weight_iq4_nl) = {dequantize, quantize, check, gemv, INTEGER_KERNELS};
