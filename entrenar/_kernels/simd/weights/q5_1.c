// Q5_1, ggml's: 32 columns in 24 bytes, an fp16 scale d, an fp16 minimum m, 32 fifth bits and 32 nibbles (q4.h);
// weight = q d + m.
#include "simd/weights/q5.h"

enum { BYTES = 24 };

INLINE void part(const uint8_t *block, int first, int count, vf *values) {
    vf d, m;
    halves_everywhere(block, &d, &m);
    if (first == 0) load_fives(block + 4, 0, 0, values);
    if (first + count > 16) load_fives(block + 4, 16, 0, values + (16 - first) / VLEN);
#pragma GCC unroll 8
    for (int v = 0; v < count / VLEN; v++) values[v] = values[v] * d + m;
}

// d = (largest - smallest value) / 31
INLINE int encode(uint8_t *block, const float *x, float largest) {
    (void)largest;
    int32_t values[GGML_BLOCK];
    const int status = encode_with_minimum(block, x, 31, values);
    store_fives(block + 4, values);
    return status;
}
static const block_format FORMAT = {GGML_BLOCK, BYTES, 2, 0, part, encode};

#if HAS_GEMV_INTEGER
INLINE void step_integer(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes,
                         vh values[INTEGER_VECTORS], vf *scale, vf *minimum) {
    (void)w, (void)row, (void)p;
    halves_everywhere(bytes, scale, minimum);
    load_fives_integer(bytes + 4, 0, values);
}
static const integer_steps INTEGERS = {step_integer, BYTES, 1};
#endif

#include "simd/weights/kernels.h"
const weight_kernels TIERED(weight_q5_1) = {dequantize, quantize, check, gemv, INTEGER_KERNELS};
