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

// d = the value of largest magnitude / -8
INLINE int encode(uint8_t *block, const float *x, float largest) {
    int32_t values[GGML_BLOCK];
    const int status = encode_signed(block, x, largest, ZERO, values);
    store_nibbles(block + 2, values);
    return status;
}
static const block_format FORMAT = {GGML_BLOCK, BYTES, 1, 0, part, encode};

#if HAS_GEMV_INTEGER
INLINE void step_integer(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes,
                         vh values[INTEGER_VECTORS], vf *scale, vf *minimum) {
    (void)w, (void)row, (void)p, (void)minimum;
    *scale = half_everywhere(bytes);
    load_nibbles_integer(bytes + 2, ZERO, values);
}
static const integer_steps INTEGERS = {step_integer, BYTES, 0};
#endif

#include "simd/weights/kernels.h"
const weight_kernels TIERED(weight_q4_0) = {dequantize, quantize, check, gemv, INTEGER_KERNELS};
