// IQ4_XS, ggml's: 256 columns in 136 bytes, 32 of which share a scale of 6 bits in units of an fp16 d;
// weight = (d (scale - 32)) value, one of 16 (iq4.h).
//
//   byte 0  d  |  2  high pairs of the scales  |  4  their low nibbles  |  8 ...  16 bytes of nibbles for 32 columns
#include "simd/weights/iq4.h"

enum { HIGH = 2, LOW = 4, NIBBLES = 8, BYTES = 136, SUB_BLOCKS = K_BLOCK / GGML_BLOCK, ZERO = 32 };

INLINE int scale_of(const uint8_t *block, int i) {
    const int pairs = block[HIGH] | block[HIGH + 1] << 8;
    return ((block[LOW + i / 2] >> 4 * (i % 2) & 15) | (pairs >> 2 * i & 3) << 4) - ZERO;
}

INLINE void part(const uint8_t *block, int first, int count, vf *values) {
    const int sub_block = first / GGML_BLOCK, within = first % GGML_BLOCK;
    const uint8_t *nibbles = block + NIBBLES + 16 * sub_block;
    const vf scale = half_everywhere(block) * (float)scale_of(block, sub_block);
    if (within == 0) load_iq4(nibbles, 0, values);
    if (within + count > 16) load_iq4(nibbles, 4, values + (16 - within) / VLEN);
#pragma GCC unroll 8
    for (int v = 0; v < count / VLEN; v++) values[v] *= scale;
}

// The sub-block's scale of largest magnitude becomes -32
INLINE int encode(uint8_t *block, const float *x, float largest) {
    (void)largest;
    float scales[SUB_BLOCKS], extreme = 0.0f;
    for (int i = 0; i < SUB_BLOCKS; i++) {
        scales[i] = fit_iq4(x + i * GGML_BLOCK);
        extreme = fabsf(scales[i]) > fabsf(extreme) ? scales[i] : extreme;
    }
    if (half_overflows(extreme / -32.0f)) return QUANTIZE_SCALE_OVERFLOW;
    const float d = stored_half(block, extreme / -32.0f), factor = reciprocal_or_zero(d);
    int high = 0;
    memset(block + LOW, 0, SUB_BLOCKS / 2);
    for (int i = 0; i < SUB_BLOCKS; i++) {
        const float scale = fmaxf(fminf(rintf(scales[i] * factor), ZERO - 1), -ZERO);
        const int stored = (int)scale + ZERO;
        high |= stored >> 4 << 2 * i;
        block[LOW + i / 2] |= (uint8_t)((stored & 15) << 4 * (i % 2));
        store_iq4(block + NIBBLES + 16 * i, x + i * GGML_BLOCK, d * scale);
    }
    block[HIGH] = (uint8_t)high, block[HIGH + 1] = (uint8_t)(high >> 8);
    return QUANTIZE_OK;
}
static const block_format FORMAT = {K_BLOCK, BYTES, 1, 0, part, encode};

#if HAS_GEMV_INTEGER
INLINE void block_scales(const uint8_t *block, v8 scales[SUBS], v8 minima[SUBS]) {
    (void)minima;
    uint32_t low;
    memcpy(&low, block + LOW, 4);
    const __m256i nibbles =
        _mm256_srlv_epi32(_mm256_set1_epi32((int)low), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    const __m256i pairs = _mm256_srlv_epi32(_mm256_set1_epi32(block[HIGH] | block[HIGH + 1] << 8),
                                            _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14));
    const __m256i high = _mm256_slli_epi32(_mm256_and_si256(pairs, _mm256_set1_epi32(3)), 4);
    const __m256i six = _mm256_or_si256(_mm256_and_si256(nibbles, _mm256_set1_epi32(15)), high);
    const __m256i scale = _mm256_sub_epi32(six, _mm256_set1_epi32(ZERO));
    scales[0] = (v8)_mm256_cvtepi32_ps(scale) * half_to_float(block);
}
INLINE void read_integers(const uint8_t *block, int step, vh values[INTEGER_VECTORS]) {
    load_iq4_integer(block + NIBBLES + 16 * step, values);
}
static const integer_blocks INTEGERS = {block_scales, read_integers, GGML_BLOCK, BYTES, 0};
#endif

#include "simd/weights/kernels.h"
const weight_kernels TIERED(weight_iq4_xs) = {dequantize, quantize, check, gemv, INTEGER_KERNELS};
