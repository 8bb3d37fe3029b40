// gemv through the kernels of the weight's type, and rows of x as the 16-bit integers that some of them multiply.
#include "simd/weights/gemv.h"

// The rows of half a head lie two strides apart: a product of their own, with a matrix of such rows
static void by_halves(void (*kernel)(const gemv_args *g), const gemv_args *g) {
    const ptrdiff_t half = g->w->half_head, end = g->first + g->count;
    if (half == 0) {
        kernel(g);
        return;
    }
    ptrdiff_t count;
    for (ptrdiff_t row = g->first; row < end; row += count) {
        matrix_view rows = *g->w;
        gemv_args part = *g;
        count = half - row % half < end - row ? half - row % half : end - row;
        rows.data = (const uint8_t *)rows.data + stored_row(g->w, row) * rows.row_stride;
        rows.row_stride *= 2, rows.half_head = 0;
        part.w = &rows, part.y += row, part.first = 0, part.count = count;
        kernel(&part);
    }
}

static void multiply(const gemv_args *g) { by_halves(TIERED(weight_types)[g->w->type].kernels->gemv, g); }

#if HAS_GEMV_INTEGER
#if HAS_PLANES
static void quantize_planes(float *words, const float *x, ptrdiff_t k) {
    const plane_row to = plane_row_of(words, k);
    for (ptrdiff_t p = 0; p + K_BLOCK <= k; p += K_BLOCK) {
        const float largest = float_from_bits((uint32_t)largest_bits(x + p, K_BLOCK));
        const int zero = largest < 1e-30f;  // as below
        const float inverse = zero ? 0.0f : PLANES_LIMIT / largest,
                    scale = zero ? 0.0f : largest * (1.0f / PLANES_LIMIT);
        float last = 0.0f;
        for (ptrdiff_t j = p; j < p + K_BLOCK; j += VLEN) {
            const __m512i value = (__m512i)round_to_int(vload(x + j) * inverse);
            const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(value, _mm512_set1_epi32(128)), 8);
            const __m512i low = _mm512_sub_epi32(value, _mm512_slli_epi32(high, 8));
            _mm_storeu_si128((void *)(to.high + j), _mm512_cvtepi32_epi8(high));
            _mm_storeu_si128((void *)(to.low + j), _mm512_cvtepi32_epi8(low));
            const float sum = (float)_mm512_reduce_add_epi32(value);
            to.half_sums[j / 16] = sum * scale;
            to.sums[j / STEP] = (last + sum) * scale;  // of whole numbers below 2^24: exact; the second half's stays
            last = sum;
        }
        to.scales[p / K_BLOCK] = scale;
    }
}
#endif

static void quantize(float *words, const float *x, ptrdiff_t k) {
    const quantized_row to = quantized_row_of(words, k);
    for (ptrdiff_t p = 0; p < k; p += STEP) {
        int32_t values[STEP], most = 0, sums[2] = {0, 0};
        for (int j = 0; j < STEP; j++) {  // as integers, in which NaN and infinity are the largest
            int32_t bits;
            memcpy(&bits, x + p + j, 4);
            bits &= 0x7fffffff;
            most = bits > most ? bits : most;
        }
        float largest;
        memcpy(&largest, &most, 4);
        const int zero = largest < 1e-30f;  // below the rounding error of any sum
        const float inverse = zero ? 0.0f : GEMV_X_LIMIT / largest,
                    scale = zero ? 0.0f : largest * (1.0f / GEMV_X_LIMIT);
        for (int j = 0; j < STEP; j += VLEN) vistore(values + j, round_to_int(vload(x + p + j) * inverse));
        for (int j = 0; j < STEP; j++) {
            to.values[p + j] = (int16_t)values[j];
            sums[j / 16] += to.values[p + j];
        }
        to.scales[p / STEP] = scale;
        to.sums[p / STEP] = (float)(sums[0] + sums[1]) * scale / VLEN;
        for (int half = 0; half < 2; half++) to.half_sums[p / 16 + half] = (float)sums[half] * scale / VLEN;
    }
#if HAS_PLANES
    if (k % K_BLOCK == 0) quantize_planes(words, x, k);
#endif
}

static void multiply_integer(const gemv_args *g) {
    by_halves(TIERED(weight_types)[g->w->type].kernels->gemv_integer, g);
}
#endif

const gemv_ops TIERED(gemv_table) = {
    .multiply = multiply,
#if HAS_GEMV_INTEGER
    .quantize = quantize,
    .multiply_integer = multiply_integer,
#endif
};
