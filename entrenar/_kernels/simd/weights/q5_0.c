// Q5_0, ggml's: 32 columns in 22 bytes, an fp16 scale d, 32 fifth bits and 32 nibbles (q4.h); weight = (q - 16) d.
#include "simd/weights/q5.h"

enum { BYTES = 22, ZERO = 16 };

INLINE void part(const uint8_t *block, int first, int count, vf *values) {
    const vf d = half_everywhere(block);
    if (first == 0) load_fives(block + 2, 0, ZERO, values);
    if (first + count > 16) load_fives(block + 2, 16, ZERO, values + (16 - first) / VLEN);
#pragma GCC unroll 8
    for (int v = 0; v < count / VLEN; v++) values[v] = values[v] * d;
}

// d = the value of largest magnitude / -16
INLINE int encode(uint8_t *block, const float *x, float largest) {
    int32_t values[GGML_BLOCK];
    const int status = encode_signed(block, x, largest, ZERO, values);
    store_fives(block + 2, values);
    return status;
}
static const block_format FORMAT = {GGML_BLOCK, BYTES, 1, 0, part, encode};

#if HAS_GEMV_INTEGER
INLINE void step_integer(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes,
                         vh values[INTEGER_VECTORS], vf *scale, vf *minimum) {
    (void)w, (void)row, (void)p, (void)minimum;
    *scale = half_everywhere(bytes);
    load_fives_integer(bytes + 2, ZERO, values);
}
static const integer_steps INTEGERS = {step_integer, BYTES, 0};
#endif

#include "simd/weights/kernels.h"
const weight_kernels TIERED(weight_q5_0) = {dequantize, quantize, check, gemv, INTEGER_KERNELS};
