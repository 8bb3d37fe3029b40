// Quantization. NF4 has the bits of bitsandbytes, Q4_0, Q4_1 and Q8_0 those of ggml's reference quantizers.
#include "simd/quantize.h"
#include "simd/vec.h"

enum { INFINITY_BITS = 0x7f800000 };

INLINE float float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// Round to nearest, ties to even; overflow gives infinity. x is not NaN.
INLINE void store_half(uint8_t *bytes, float x) {
    uint32_t half;
#if defined(__F16C__)
    half = (uint16_t)_cvtss_sh(x, 0);
#else
    uint32_t bits, sign;
    memcpy(&bits, &x, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits >= 0x47800000) {  // 65536 and more
        half = 0x7c00;
    } else if (bits < 0x38800000) {  // subnormal: adding 0.5 leaves the mantissa in units of 2^-24, rounded to even
        float shifted = float_from_bits(bits) + 0.5f;
        memcpy(&half, &shifted, 4);
        half -= 0x3f000000;
    } else {  // a carry out of the mantissa belongs in the exponent
        half = (bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13;
    }
    half |= sign;
#endif
    bytes[0] = (uint8_t)half;
    bytes[1] = (uint8_t)(half >> 8);
}

// max |x| as bits, which order like the floats; above INFINITY_BITS - 1 something is not finite
INLINE int32_t largest_bits(const float *x, ptrdiff_t n) {
    vi largest = viset(0);
    for (ptrdiff_t i = 0; i < n; i += VLEN) {
        vi bits = viload((const int32_t *)(x + i)) & 0x7fffffff, more = bits > largest;
        largest = (bits & more) | (largest & ~more);
    }
    int32_t result = 0;
    for (int i = 0; i < VLEN; i++)
        if (largest[i] > result) result = largest[i];
    return result;
}

// code = number of midpoints below x * (1 / absmax), so ties go to the lower code.
static int nf4(uint8_t *codes, float *absmax, const float *x, ptrdiff_t columns) {
    float midpoint[15];
    for (int i = 0; i < 15; i++) midpoint[i] = (NF4_VALUES[i] + NF4_VALUES[i + 1]) * 0.5f;
    int32_t code[NF4_BLOCK];
    int status = QUANTIZE_OK;
    for (ptrdiff_t block = 0; block < columns / NF4_BLOCK; block++, x += NF4_BLOCK, codes += NF4_BLOCK / 2) {
        int32_t bits = largest_bits(x, NF4_BLOCK);
        if (bits >= INFINITY_BITS) status = QUANTIZE_NOT_FINITE;
        float largest = float_from_bits((uint32_t)bits);
        vf reciprocal = vset(1.0f / (largest < 1e-38f ? 1e-38f : largest));
        for (int i = 0; i < NF4_BLOCK; i += VLEN) {
            vf scaled = vload(x + i) * reciprocal;
            vi count = viset(0);
            for (int j = 0; j < 15; j++) count -= scaled > vset(midpoint[j]);
            vistore(code + i, count);
        }
        absmax[block] = largest;
        for (int i = 0; i < NF4_BLOCK / 2; i++) codes[i] = (uint8_t)(code[2 * i] << 4 | code[2 * i + 1]);
    }
    return status;
}

// 32 codes min(15, trunc((x - shift) * factor + half)), packed as code j | code j + 16 << 4
INLINE void q4_codes(uint8_t *bytes, const float *x, float shift, float factor, float half) {
    int32_t code[GGML_BLOCK];
    for (int i = 0; i < GGML_BLOCK; i += VLEN) {
        vf product = (vload(x + i) - shift) * factor;
        ROUNDED(product);
        vi c = __builtin_convertvector(product + half, vi), over = c > 15;
        vistore(code + i, (c & ~over) | (over & 15));
    }
    for (int i = 0; i < GGML_BLOCK / 2; i++) bytes[i] = (uint8_t)(code[i] | code[i + GGML_BLOCK / 2] << 4);
}

// 1 / d, or 0 where d is 0 or so small that the reciprocal overflows (its fp16 is 0 in any case)
INLINE float reciprocal_or_zero(float d) {
    float reciprocal = d != 0.0f ? 1.0f / d : 0.0f;
    return fabsf(reciprocal) <= 3.402823466e38f ? reciprocal : 0.0f;
}
INLINE int half_overflows(float x) { return fabsf(x) >= 65520.0f; }

static int q4_0(uint8_t *blocks, const float *x, ptrdiff_t columns) {
    int status = QUANTIZE_OK;
    for (ptrdiff_t block = 0; block < columns / GGML_BLOCK; block++, x += GGML_BLOCK, blocks += Q4_0_BYTES) {
        int32_t bits = largest_bits(x, GGML_BLOCK);
        if (bits >= INFINITY_BITS) {
            status |= QUANTIZE_NOT_FINITE;
            continue;
        }
        float magnitude = float_from_bits((uint32_t)bits), largest = x[0];
        for (int i = 0; i < GGML_BLOCK; i++) {  // with its sign: of several, the first
            if (fabsf(x[i]) == magnitude) {
                largest = x[i];
                break;
            }
        }
        float d = largest / -8.0f;
        if (half_overflows(d)) status |= QUANTIZE_SCALE_OVERFLOW;
        store_half(blocks, d);
        q4_codes(blocks + 2, x, 0.0f, reciprocal_or_zero(d), 8.5f);
    }
    return status;
}

static int q4_1(uint8_t *blocks, const float *x, ptrdiff_t columns) {
    int status = QUANTIZE_OK;
    for (ptrdiff_t block = 0; block < columns / GGML_BLOCK; block++, x += GGML_BLOCK, blocks += Q4_1_BYTES) {
        if (largest_bits(x, GGML_BLOCK) >= INFINITY_BITS) {
            status |= QUANTIZE_NOT_FINITE;
            continue;
        }
        vf low = vload(x), high = low;
        for (int i = VLEN; i < GGML_BLOCK; i += VLEN) {
            low = vmin(low, vload(x + i));
            high = vmax(high, vload(x + i));
        }
        float minimum = -vmaximum(-low) + 0.0f, d = (vmaximum(high) - minimum) / 15.0f;  // + 0 makes a -0 positive
        if (half_overflows(d) || half_overflows(minimum)) status |= QUANTIZE_SCALE_OVERFLOW;
        store_half(blocks, d);
        store_half(blocks + 2, minimum);
        q4_codes(blocks + 4, x, minimum, reciprocal_or_zero(d), 0.5f);
    }
    return status;
}

// d = largest magnitude / 127, code = x / d to the nearest, ties away from zero
static int q8_0(uint8_t *blocks, const float *x, ptrdiff_t columns) {
    int status = QUANTIZE_OK;
    for (ptrdiff_t block = 0; block < columns / GGML_BLOCK; block++, x += GGML_BLOCK, blocks += Q8_0_BYTES) {
        int32_t bits = largest_bits(x, GGML_BLOCK);
        if (bits >= INFINITY_BITS) {
            status |= QUANTIZE_NOT_FINITE;
            continue;
        }
        float d = float_from_bits((uint32_t)bits) / 127.0f, factor = reciprocal_or_zero(d);
        if (half_overflows(d)) status |= QUANTIZE_SCALE_OVERFLOW;
        store_half(blocks, d);
        for (int i = 0; i < GGML_BLOCK; i++) blocks[2 + i] = (uint8_t)(int8_t)roundf(x[i] * factor);
    }
    return status;
}

// The nearest of 256 sorted values; of two as near, the lower.
INLINE uint8_t nearest(const float *map, float x) {
    int low = 0, high = 255;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (map[middle] <= x) low = middle;
        else high = middle;
    }
    return (uint8_t)(map[high] - x < x - map[low] ? high : low);
}

static void quantize_absmax(uint8_t *codes, float *second, const float *absmax, float offset, const float *map,
                            ptrdiff_t count) {
    float largest = 0.0f;
    for (ptrdiff_t i = 0; i < count; i++) {
        float magnitude = fabsf(absmax[i] - offset);
        if (magnitude > largest) largest = magnitude;
    }
    *second = largest;
    for (ptrdiff_t i = 0; i < count; i++)
        codes[i] = nearest(map, largest > 0.0f ? (absmax[i] - offset) / largest : 0.0f);
}

// code = x * (4095 / largest) to the nearest, ties to even; scale = largest / 4095
static int int16(int16_t *codes, float *scales, const float *x, ptrdiff_t columns) {
    int status = QUANTIZE_OK;
    for (ptrdiff_t block = 0; block < columns / INT16_BLOCK; block++, x += INT16_BLOCK, codes += INT16_BLOCK) {
        int32_t bits = largest_bits(x, INT16_BLOCK);
        if (bits >= INFINITY_BITS) {
            status |= QUANTIZE_NOT_FINITE;
            continue;
        }
        float largest = float_from_bits((uint32_t)bits);
        if (largest < 1e-30f) largest = 0.0f;  // the reciprocal would overflow
        const float factor = largest != 0.0f ? INT16_LIMIT / largest : 0.0f;
        scales[block] = largest * (1.0f / INT16_LIMIT);
        for (int i = 0; i < INT16_BLOCK; i++) codes[i] = (int16_t)rintf(x[i] * factor);
    }
    return status;
}

static int ggml_scales(const uint8_t *blocks, ptrdiff_t count, ptrdiff_t size, int minimum) {
    int found = 0;
    for (ptrdiff_t block = 0; block < count; block++, blocks += size) {
        found |= (blocks[1] & 0x7c) == 0x7c;  // exponent of all ones
        if (minimum) found |= (blocks[3] & 0x7c) == 0x7c;
    }
    return found ? QUANTIZE_NOT_FINITE : QUANTIZE_OK;
}

static void dequantize(const matrix_view *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, float *out) {
    dequantize_row(s, row, k0, count, out);
}

const quantize_ops TIERED(quantize_table) = {
    .nf4 = nf4,
    .q4_0 = q4_0,
    .q4_1 = q4_1,
    .q8_0 = q8_0,
    .int16 = int16,
    .absmax = quantize_absmax,
    .ggml_scales = ggml_scales,
    .dequantize_row = dequantize,
};
