// Q4_K, ggml's: 256 columns in 144 bytes, the header of q4_k.h and nibbles q, 64 columns in 32 bytes, of which the low
// nibbles are the first 32.
#include "simd/weights/q4_k.h"

enum { BYTES = HEADER + K_BLOCK / 2 };

INLINE void part(const uint8_t *block, int first, int count, vf *values) {
    const uint8_t *nibbles = block + HEADER + first / 64 * 32 + first % 32;
#pragma GCC unroll 2
    for (int i = 0; i < count; i += 16)
        widen16(bits_at(load16(nibbles + i), first / 32 % 2 * 4, 15), 0, values + i / VLEN);
    scale_sixes(block, first, count, values);
}

INLINE int encode(uint8_t *block, const float *x, float largest) {
    (void)largest;
    int32_t values[K_BLOCK];
    const int status = encode_sixes(block, x, 15, values);
    store_nibble_groups(block + HEADER, values);
    return status;
}
static const block_format FORMAT = {K_BLOCK, BYTES, 2, 0, part, encode};

#if HAS_GEMV_INTEGER
INLINE void read_integers(const uint8_t *block, int step, vh values[INTEGER_VECTORS]) {
    for (int v = 0; v < INTEGER_VECTORS; v++)
        values[v] = nibbles_of(load_bytes(block + HEADER + step / 2 * 32, v), step % 2);
}
#if HAS_PLANES
INLINE void read_bytes(const uint8_t *block, __m512i q[4]) { byte_nibbles(block + HEADER, q); }
#endif
static const integer_blocks INTEGERS = {
    .scales = block_scales,
    .read = read_integers,
    .sub_block = GGML_BLOCK,
    .bytes = BYTES,
    .has_minimum = 1,
#if HAS_PLANES
    .planes = {byte_scales, read_bytes, GEMV_SIXTEENS},
#endif
};
#endif

#include "simd/weights/kernels.h"
const weight_kernels TIERED(weight_q4_k) = {dequantize, quantize, check, gemv, INTEGER_KERNELS, X_SIXTEENS};
