// The bodies of gemv, of which each weight type makes its own: y (m, n) = x (m, k) W (n, k)^T with W dequantized in
// registers. What `steps` says is constant at every call, and its function is inlined.
#pragma once
#include "simd/gemv.h"
#include "simd/vec.h"
#include "simd/weights/blocks.h"

enum { STEP = GEMV_STEP };  // no block of a type ends within a step of columns
_Static_assert((int)GGML_BLOCK == STEP, "a step is a block of ggml's");
_Static_assert(GEMV_ROWS == 4, "sums and cases are written out for 4 rows");

// ---------------------------------------------------------------- fp32
enum { STEP_VECTORS = STEP / VLEN };

// values = the columns [p, p + STEP) of a row of w, which lie at `bytes`: the bits of dequantize_row
typedef void step_function(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes,
                           vf values[STEP_VECTORS]);

typedef struct steps {
    step_function *read;
    int bytes;        // of a step
    int value_bytes;  // of a value that is not quantized: row_stride counts values, a row may end within a step; else 0
} steps;

// y[r][first + i] (+)= x[r] . w[first + i] for r < rows, i < weights, both constants at every call
INLINE void gemv_block(const gemv_args *g, ptrdiff_t first, steps step, int rows, int weights) {
    const matrix_view *w = g->w;
    const float *x = g->x;
    const ptrdiff_t ldx = g->ldx, k = g->k, stride = w->row_stride * (step.value_bytes ? step.value_bytes : 1);
    const uint8_t *bytes = (const uint8_t *)w->data + first * stride, *ahead = bytes + weights * stride;
    vf total[4] = {{0}, {0}, {0}, {0}};
    float rest[4] = {0};
    ptrdiff_t p = 0;
    for (; p + STEP <= k; p += STEP, bytes += step.bytes, ahead += step.bytes) {
#pragma GCC unroll 4
        for (int i = 0; i < weights; i++) {
            vf values[STEP_VECTORS];
            // the next rows: short rows end before the hardware prefetcher follows them
            __builtin_prefetch(ahead + i * stride);
            step.read(w, first + i, p, bytes + i * stride, values);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                const float *at = x + r * ldx + p;
                vf part = vload(at) * values[0];
#pragma GCC unroll 8
                for (int v = 1; v < STEP_VECTORS; v++) part += vload(at + v * VLEN) * values[v];
                total[r * weights + i] += part;
            }
        }
    }
    if (step.value_bytes && p < k) {
#pragma GCC unroll 4
        for (int i = 0; i < weights; i++) {
            float values[STEP];
            dequantize_row(w, first + i, p, k - p, values);
            for (int r = 0; r < rows; r++) {
                const float *at = x + r * ldx + p;
                ptrdiff_t j = 0;
                for (; j + VLEN <= k - p; j += VLEN) total[r * weights + i] += vload(at + j) * vload(values + j);
                for (; j < k - p; j++) rest[r * weights + i] += at[j] * values[j];
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int i = 0; i < weights; i++) {
            const float sum = vsum(total[r * weights + i]) + rest[r * weights + i];
            float *to = g->y + r * g->ldy + first + i;
            *to = g->accumulate ? *to + sum : sum;
        }
}

// weight_kernels.gemv: four rows of w at a time for one row of x
INLINE void gemv_by(const gemv_args *g, steps step) {
    const ptrdiff_t end = g->first + g->count;
    ptrdiff_t i = g->first;
    if (g->m == 1)
        for (; i + 4 <= end; i += 4) gemv_block(g, i, step, 1, 4);
    for (; i < end; i++) {
        switch (g->m) {
        case 1: gemv_block(g, i, step, 1, 1); break;
        case 2: gemv_block(g, i, step, 2, 1); break;
        case 3: gemv_block(g, i, step, 3, 1); break;
        default: gemv_block(g, i, step, 4, 1);
        }
    }
}

// ---------------------------------------------------------------- 16-bit integers
// x in integers with a scale for each step, W by its quantized values. The sum of a step is exact; it is scaled and
// added in fp32.
//
//   |x| <= 32767, |W| <= 4095: the four products of a step that a 32-bit lane adds stay below 2^31
#if VLEN >= 8  // without, dequantizing costs more than integers save
#define HAS_GEMV_INTEGER 1
enum { INTEGER_VECTORS = STEP / (2 * VLEN), GEMV_X_LIMIT = 32767 };

#if VLEN == 16
typedef __m512i vh;  // 2 VLEN int16
INLINE vh vhload(const void *p) { return _mm512_loadu_si512(p); }
INLINE vh vhbytes(const uint8_t *p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)p)); }
INLINE vi multiply_add(vh a, vh b) { return (vi)_mm512_madd_epi16(a, b); }
// The columns 0..15 and 16..31 of a step
INLINE void join(__m256i low, __m256i high, vh *out) {
    out[0] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
#else
typedef __m256i vh;
INLINE vh vhload(const void *p) { return _mm256_loadu_si256(p); }
INLINE vh vhbytes(const uint8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)p)); }
INLINE vi multiply_add(vh a, vh b) { return (vi)_mm256_madd_epi16(a, b); }
INLINE void join(__m256i low, __m256i high, vh *out) { out[0] = low, out[1] = high; }
#endif

// A row of x in gemv_words(k) words: values, the scale of each step, and the sum of each step's values / VLEN
typedef struct quantized_row {
    int16_t *values;
    float *scales, *sums;
} quantized_row;
INLINE quantized_row quantized_row_of(const float *words, ptrdiff_t k) {
    float *scales = (float *)words + k / 2;
    return (quantized_row){(int16_t *)words, scales, scales + k / STEP};
}

// values = the columns [p, p + STEP) of a row of w, which lie at `bytes`, as integers: value * scale, or + minimum too
typedef void integer_step_function(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes,
                                   vh values[INTEGER_VECTORS], vf *scale, vf *minimum);

typedef struct integer_steps {
    integer_step_function *read;
    int bytes;        // of a step
    int has_minimum;  // else `read` leaves it alone
} integer_steps;

// y[r][first + i] = x[r] . w[first + i] for r < rows, i < weights, both constants at every call
INLINE void gemv_integer_block(const gemv_args *g, ptrdiff_t first, integer_steps step, int rows, int weights) {
    const matrix_view *w = g->w;
    const float *words = g->x;
    const ptrdiff_t k = g->k, stride = w->row_stride;
    const uint8_t *bytes = (const uint8_t *)w->data + first * stride, *ahead = bytes + weights * stride;
    vf total[4] = {{0}, {0}, {0}, {0}};
    for (ptrdiff_t p = 0; p < k; p += STEP, bytes += step.bytes, ahead += step.bytes) {
#pragma GCC unroll 4
        for (int i = 0; i < weights; i++) {
            vh values[INTEGER_VECTORS];
            vf scale, minimum;
            __builtin_prefetch(ahead + i * stride);
            step.read(w, first + i, p, bytes + i * stride, values, &scale, &minimum);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                const quantized_row x = quantized_row_of(words + r * gemv_words(k), k);
                vi sum = multiply_add(values[0], vhload(x.values + p));
                vf *to = &total[r * weights + i];
#pragma GCC unroll 2
                for (int v = 1; v < INTEGER_VECTORS; v++)
                    sum += multiply_add(values[v], vhload(x.values + p + v * 2 * VLEN));
                if (step.has_minimum) *to += minimum * x.sums[p / STEP];
                *to += __builtin_convertvector(sum, vf) * (scale * x.scales[p / STEP]);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int i = 0; i < weights; i++) g->y[r * g->ldy + first + i] = vsum(total[r * weights + i]);
}

// weight_kernels.gemv_integer
INLINE void gemv_integer_by(const gemv_args *g, integer_steps step) {
    const ptrdiff_t end = g->first + g->count;
    ptrdiff_t i = g->first;
    if (g->m == 1)
        for (; i + 4 <= end; i += 4) gemv_integer_block(g, i, step, 1, 4);
    for (; i < end; i++) {
        switch (g->m) {
        case 1: gemv_integer_block(g, i, step, 1, 1); break;
        case 2: gemv_integer_block(g, i, step, 2, 1); break;
        case 3: gemv_integer_block(g, i, step, 3, 1); break;
        default: gemv_integer_block(g, i, step, 4, 1);
        }
    }
}
#endif
