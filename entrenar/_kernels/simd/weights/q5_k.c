// Q5_K, ggml's: 256 columns in 176 bytes, the header of q4_k.h, 32 bytes whose bits i are the fifth bits of the columns
// 32 i to 32 i + 31, and nibbles as Q4_K has them.
#include "simd/weights/q4_k.h"

enum { FIFTHS = HEADER, NIBBLES = HEADER + 32, BYTES = NIBBLES + K_BLOCK / 2 };

INLINE void part(const uint8_t *block, int first, int count, vf *values) {
    const uint8_t *nibbles = block + NIBBLES + first / 64 * 32 + first % 32, *fifths = block + FIFTHS + first % 32;
    const int sub_block = first / 32;
#pragma GCC unroll 2
    for (int i = 0; i < count; i += 16) {
        const vb16 low = bits_at(load16(nibbles + i), sub_block % 2 * 4, 15);
        const vb16 fifth = (vb16)((vh8)bits_at(load16(fifths + i), sub_block, 1) << 4);
        widen16(low | fifth, 0, values + i / VLEN);
    }
    scale_sixes(block, first, count, values);
}

INLINE int encode(uint8_t *block, const float *x, float largest) {
    (void)largest;
    int32_t values[K_BLOCK];
    const int status = encode_sixes(block, x, 31, values);
    store_nibble_groups(block + NIBBLES, values);
    for (int i = 0; i < 32; i++) {
        block[FIFTHS + i] = 0;
        for (int j = 0; j < SUB_BLOCKS; j++) block[FIFTHS + i] |= (uint8_t)((values[32 * j + i] >> 4 & 1) << j);
    }
    return status;
}
static const block_format FORMAT = {K_BLOCK, BYTES, 2, 0, part, encode};

#if HAS_GEMV_INTEGER
INLINE void read_integers(const uint8_t *block, int step, vh values[INTEGER_VECTORS]) {
    for (int v = 0; v < INTEGER_VECTORS; v++) {
        const vh low = nibbles_of(load_bytes(block + NIBBLES + step / 2 * 32, v), step % 2);
        values[v] = with_bits(low, load_bytes(block + FIFTHS, v), step - 4, 1 << 4);
    }
}
#if HAS_PLANES
// Bit s of a byte of FIFTHS becomes bit 4 of a column of sub-block s
INLINE void read_bytes(const uint8_t *block, __m512i q[4]) {
    byte_nibbles(block + NIBBLES, q);
    for (int i = 0; i < 2; i++) {
        const __m512i fifths = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)(block + FIFTHS + 16 * i)));
        const __m512i even = _mm512_setr_epi64(0x0000000400000004, 0x0000000400000004, 0x0000000200000002,
                                               0x0000000200000002, 0, 0, 0x0000001e0000001e, 0x0000001e0000001e);
        const __m512i odd = _mm512_sub_epi32(even, _mm512_set1_epi32(1));
        const __m512i bit = _mm512_set1_epi8(16);
        q[i] = _mm512_ternarylogic_epi64(q[i], _mm512_rolv_epi32(fifths, even), bit, 0xf8);
        q[2 + i] = _mm512_ternarylogic_epi64(q[2 + i], _mm512_rolv_epi32(fifths, odd), bit, 0xf8);
    }
}
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
const weight_kernels TIERED(weight_q5_k) = {dequantize, quantize, check, gemv, INTEGER_KERNELS, X_SIXTEENS};
