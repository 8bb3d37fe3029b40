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

static void in_passes(void (*kernel)(const gemv_args *g), const gemv_args *g) {
    gemv_args pass = *g;
    for (int rows, left = g->m; left > 0; left -= rows, pass.x += rows * g->ldx, pass.y += rows * g->ldy) {
        rows = left < GEMV_PASS ? left : GEMV_PASS;
        pass.m = rows = rows == 7 ? 6 : rows == 5 ? 4 : rows;  // those that the kernels have cases of
        by_halves(kernel, &pass);
    }
}

static void multiply(const gemv_args *g) { in_passes(TIERED(weight_types)[g->w->type].kernels->gemv, g); }

#if HAS_GEMV_INTEGER
// The scale of x[0 .. n) in integers up to `limit`, and its inverse. NaN and infinity are the largest of bits.
INLINE float scale_to(const float *x, ptrdiff_t n, float limit, float *inverse) {
    const float largest = float_from_bits((uint32_t)largest_bits(x, n));
    const int zero = largest < 1e-30f;  // below the rounding error of any sum
    *inverse = zero ? 0.0f : limit / largest;
    return zero ? 0.0f : largest * (1.0f / limit);
}

#if HAS_PLANES
static void store_sixteen(plane_row to, ptrdiff_t p, int i, __m128i low, __m128i high) {
    const ptrdiff_t at = p + 64 * (i % 4) + 16 * (i / 4);
    _mm_store_si128((void *)(to.low + at), low);
    _mm_store_si128((void *)(to.high + at), high);
}
static void store_eights(plane_row to, ptrdiff_t p, int i, __m128i low, __m128i high) {
    const ptrdiff_t at = p + 128 * (i / 4 % 2) + 16 * (i % 4) + 8 * (i / 8);
    _mm_storel_epi64((void *)(to.low + at), low);
    _mm_storel_epi64((void *)(to.low + at + 64), _mm_unpackhi_epi64(low, low));
    _mm_storel_epi64((void *)(to.high + at), high);
    _mm_storel_epi64((void *)(to.high + at + 64), _mm_unpackhi_epi64(high, high));
}
// Of the block at column p
static void store_biases(plane_row to, ptrdiff_t p) {
    const __m512i zero = _mm512_setzero_si512(), factor = _mm512_set1_epi8(EIGHTS_ZERO);
    for (ptrdiff_t half = p; half < p + K_BLOCK; half += K_BLOCK / 2)
        for (int plane = 0; plane < 2; plane++) {
            const int8_t *bytes = (plane ? to.high : to.low) + half;
            const __m512i sum = _mm512_dpbusd_epi32(zero, factor, vhload(bytes));
            _mm512_store_si512(to.biases + half / 4 + 16 * plane,
                               _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(sum, factor, vhload(bytes + 64))));
        }
}

static void quantize_planes(float *words, const float *x, ptrdiff_t k, int forms) {
    const plane_row sixteens = plane_row_of(words, k, GEMV_SIXTEENS), eights = plane_row_of(words, k, GEMV_EIGHTS);
    for (ptrdiff_t p = 0; p < k; p += K_BLOCK) {
        float inverse;
        const float scale = scale_to(x + p, K_BLOCK, PLANES_LIMIT, &inverse);
        __m512i last = _mm512_setzero_si512();
        for (int i = 0; i < K_BLOCK / VLEN; i++) {
            const __m512i value = (__m512i)round_to_int(vload(x + p + i * VLEN) * inverse);
            const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(value, _mm512_set1_epi32(128)), 8);
            const __m128i highs = _mm512_cvtepi32_epi8(high), lows = _mm512_cvtepi32_epi8(value);
            if (forms & 1 << GEMV_SIXTEENS) {
                store_sixteen(sixteens, p, i, lows, highs);
                if (i % 2)  // of whole numbers below 2^24: exact
                    sixteens.sums[p / STEP + i / 2] =
                        (float)_mm512_reduce_add_epi32(_mm512_add_epi32(last, value)) * scale;
                last = value;
            }
            if (forms & 1 << GEMV_EIGHTS) store_eights(eights, p, i, lows, highs);
        }
        if (forms & 1 << GEMV_EIGHTS) store_biases(eights, p);
        sixteens.scales[p / K_BLOCK] = scale;
    }
}
#endif

typedef int16_t vshort __attribute__((vector_size(2 * VLEN), aligned(2), may_alias));
INLINE int32_t sum_of(vi v) {
#if VLEN == 16
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int32_t sum = 0;
    for (int i = 0; i < VLEN; i++) sum += v[i];
    return sum;
#endif
}

static void quantize_steps(float *words, const float *x, ptrdiff_t k) {
    const quantized_row to = quantized_row_of(words, k);
    for (ptrdiff_t block = 0; block < k; block += K_BLOCK) {
        const ptrdiff_t end = k - block < K_BLOCK ? k : block + K_BLOCK;
        float inverse;
        const float scale = scale_to(x + block, end - block, GEMV_X_LIMIT, &inverse);
        for (ptrdiff_t p = block; p < end; p += STEP) {
            int32_t sums[2];
            for (int half = 0; half < 2; half++) {
                vi sum = viset(0);
                for (ptrdiff_t j = p + 16 * half; j < p + 16 * half + 16; j += VLEN) {
                    const vi value = round_to_int(vload(x + j) * inverse);
                    *(vshort *)(to.values + j) = __builtin_convertvector(value, vshort);
                    sum += value;
                }
                sums[half] = sum_of(sum);
                to.half_sums[p / 16 + half] = (float)sums[half] * scale;
            }
            to.scales[p / STEP] = scale;
            to.sums[p / STEP] = (float)(sums[0] + sums[1]) * scale;
        }
    }
}

static void quantize(float *words, const float *x, ptrdiff_t k, int forms) {
    if (forms & 1 << GEMV_STEPS) quantize_steps(words, x, k);
#if HAS_PLANES
    if (forms & ~(1 << GEMV_STEPS)) quantize_planes(words, x, k, forms);
#endif
}

static void multiply_integer(const gemv_args *g) {
    in_passes(TIERED(weight_types)[g->w->type].kernels->gemv_integer, g);
}
#endif

const gemv_ops TIERED(gemv_table) = {
    .multiply = multiply,
#if HAS_GEMV_INTEGER
    .quantize = quantize,
    .multiply_integer = multiply_integer,
#endif
};
