// int16: 64 columns share an fp32 scale; value = x * (4095 / largest) to the nearest, ties to even, so that 16-bit
// integer products read it as it is: 64 products with |x| <= 8191 stay below 2^31.
#include "simd/gemm.h"
#include "simd/weights/gemv.h"

enum { BLOCK = 64 };
_Static_assert((int)BLOCK == GEMM_BLOCK, "int16 panels of B take blocks as they are");

INLINE const int16_t *values_of(const matrix_view *s, ptrdiff_t row) {
    return (const int16_t *)((const uint8_t *)s->data + row * s->row_stride);
}
INLINE float scale_of(const matrix_view *s, ptrdiff_t row, ptrdiff_t k) {
    return s->scales[row * (s->columns / BLOCK) + k / BLOCK];
}

// out = 16-bit values, `vectors` whole vectors of them
INLINE void load_values(const int16_t *values, int vectors, vf *out) {
    for (int v = 0; v < vectors; v++, values += VLEN) {
#if VLEN == 16
        out[v] = __builtin_convertvector((vi)_mm512_cvtepi16_epi32(_mm256_loadu_si256((const void *)values)), vf);
#elif VLEN == 8
        out[v] = __builtin_convertvector((vi)_mm256_cvtepi16_epi32(_mm_loadu_si128((const void *)values)), vf);
#else
        out[v] = (vf){values[0], values[1], values[2], values[3]};
#endif
    }
}

static void dequantize(const matrix_view *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, float *out) {
    const int16_t *values = values_of(s, row);
    for (ptrdiff_t k = k0, end = k0 + count; k < end;) {
        const float scale = scale_of(s, row, k);
        ptrdiff_t stop = (k / BLOCK + 1) * BLOCK;
        if (stop > end) stop = end;
        for (; k + VLEN <= stop; k += VLEN) {
            vf run;
            load_values(values + k, 1, &run);
            vstore(out + (k - k0), run * scale);
        }
        for (; k < stop; k++) out[k - k0] = (float)values[k] * scale;
    }
}

static int quantize(void *to, float *scales, const float *x, ptrdiff_t columns) {
    int16_t *values = to;
    int status = QUANTIZE_OK;
    for (ptrdiff_t block = 0; block < columns / BLOCK; block++, x += BLOCK, values += BLOCK) {
        int32_t bits = largest_bits(x, BLOCK);
        if (bits >= INFINITY_BITS) {
            status |= QUANTIZE_NOT_FINITE;
            continue;
        }
        float largest = float_from_bits((uint32_t)bits);
        if (largest < 1e-30f) largest = 0.0f;  // the reciprocal would overflow
        const float factor = largest != 0.0f ? INT16_LIMIT / largest : 0.0f;
        scales[block] = largest * (1.0f / INT16_LIMIT);
        for (int i = 0; i < BLOCK; i++) values[i] = (int16_t)rintf(x[i] * factor);
    }
    return status;
}

// Integer products would overflow beyond the limit, silently
static int check(const void *row, ptrdiff_t columns) {
    const int16_t *values = row;
    int beyond = 0;
    for (ptrdiff_t i = 0; i < columns; i++) beyond |= values[i] > INT16_LIMIT || values[i] < -INT16_LIMIT;
    return beyond ? QUANTIZE_OUT_OF_RANGE : QUANTIZE_OK;
}

INLINE void step(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes, vf values[STEP_VECTORS]) {
    const vf scale = vset(scale_of(w, row, p));
    load_values((const int16_t *)bytes, STEP_VECTORS, values);
#pragma GCC unroll 8
    for (int v = 0; v < STEP_VECTORS; v++) values[v] = values[v] * scale;
}
static void gemv(const gemv_args *g) { gemv_by(g, (steps){step, STEP, 2 * STEP, 0}); }

#if HAS_GEMV_INTEGER
INLINE void step_integer(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes,
                         vh values[INTEGER_VECTORS], vf *scale, vf *minimum) {
    (void)minimum;
    *scale = vset(scale_of(w, row, p));
    for (int v = 0; v < INTEGER_VECTORS; v++) values[v] = vhload((const int16_t *)bytes + v * 2 * VLEN);
}
static const integer_steps STEPS = {step_integer, 2 * STEP, 0};
static void gemv_integer(const gemv_args *g) { gemv_integer_by(g, STEPS); }
static void integers(const matrix_view *s, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, int16_t *values, float *scales,
                     float *minima) {
    integers_by(s, row, k0, count, STEPS, values, scales, minima);
}
#endif

const weight_kernels TIERED(weight_int16) = {
    .dequantize_row = dequantize,
    .quantize_row = quantize,
    .check_row = check,
    .gemv = gemv,
#if HAS_GEMV_INTEGER
    .gemv_integer = gemv_integer,
    .integers = integers,
#endif
};
