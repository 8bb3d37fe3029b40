// Tiles of attention (see attention.h). Every product is an instance of `matmul` on scratch that fits L1 and L2.
#include "simd/attention.h"
#include <float.h>
#include "simd/gemm.h"
#include "simd/math.h"
#include "simd/vec.h"

#define ROWS ATTENTION_ROWS
enum { AHEAD = 8 };  // rows that `gather` asks for before it reads them
_Static_assert((int)GEMM_ONES >= (int)ATTENTION_ROWS && (int)GEMM_ONES >= (int)ATTENTION_KEYS,
               "products that add read gemm_ones");

static const float *row_of(const float *x, const attention_rows *view, ptrdiff_t i) {
    ptrdiff_t r = view->first + i;
    return x + r / view->group * view->stride + r % view->group * view->dim;
}

static void gather(float *tile, ptrdiff_t ld, const float *x, const attention_rows *view) {
    ptrdiff_t dim = view->dim, whole = dim / VLEN * VLEN;
    for (ptrdiff_t i = 0; i < view->rows; i++, tile += ld) {
        const float *row = row_of(x, view, i);
        // a cache of keys has left L2 since the last token, and the hardware does not follow pieces of rows
        for (ptrdiff_t j = 0; j < dim; j += 16) __builtin_prefetch(row + AHEAD * view->stride + j);
        for (ptrdiff_t j = 0; j < whole; j += VLEN) vstore(tile + j, vload(row + j));
        if (whole < dim) vstore(tile + whole, vload_n(row + whole, dim - whole, 0));
    }
}

static void gather_transposed(float *tile, ptrdiff_t ld, const float *x, const attention_rows *view, float scale) {
    for (ptrdiff_t i = 0; i < view->rows; i += VLEN) {
        const float *row[VLEN];
        int lanes = view->rows - i < VLEN ? (int)(view->rows - i) : VLEN;
        for (int lane = 0; lane < VLEN; lane++) row[lane] = row_of(x, view, i + (lane < lanes ? lane : 0));
        vf live;
        for (int lane = 0; lane < VLEN; lane++) live[lane] = lane < lanes ? scale : 0;
        for (ptrdiff_t j = 0; j < view->dim; j++) {
            vf v;
            for (int lane = 0; lane < VLEN; lane++) v[lane] = row[lane][j];
            // padded lanes repeat row 0 so that they stay finite, and count for nothing
            vstore(tile + j * ld + i, lanes == VLEN ? v * scale : vselect(live != 0, v * scale, vset(0)));
        }
    }
}

static void scatter(float *x, const float *tile, ptrdiff_t ld, const float *factor, const attention_rows *view,
                    int accumulate) {
    for (ptrdiff_t i = 0; i < view->rows; i++, tile += ld) {
        float *row = (float *)row_of(x, view, i), f = factor ? factor[i] : 1;
        ptrdiff_t j = 0;
        for (; j + VLEN <= view->dim; j += VLEN) {
            vf y = vload(tile + j) * f;
            vstore(row + j, accumulate ? vload(row + j) + y : y);
        }
        for (; j < view->dim; j++) row[j] = accumulate ? row[j] + tile[j] * f : tile[j] * f;
    }
}

// `masked` is a constant at every call, so that tiles below the diagonal do not pay for the comparison
INLINE void step(float *scores, float *maximum, float *sum, float *keep, const int32_t *limit, int32_t first_key,
                 ptrdiff_t keys, ptrdiff_t rows, int masked) {
    for (ptrdiff_t r = 0; r < rows; r += VLEN) {
        vf before = vload(maximum + r), m = before;
        vi last = viload(limit + r);
        for (ptrdiff_t k = 0; k < keys; k++) {
            vf s = vload(scores + k * ROWS + r);
            m = vmax(masked ? vselect(first_key + (int32_t)k <= last, s, vset(-FLT_MAX)) : s, m);
        }
        vf factor = vexp(before - m), total = vload(sum + r) * factor;
        for (ptrdiff_t k = 0; k < keys; k++) {
            vf p = vexp(vload(scores + k * ROWS + r) - m);
            if (masked) p = vselect(first_key + (int32_t)k <= last, p, vset(0));
            total += p;
            vstore(scores + k * ROWS + r, p);
        }
        vstore(maximum + r, m);
        vstore(sum + r, total);
        vstore(keep + r, factor);
    }
}

static void softmax_step(float *scores, float *maximum, float *sum, float *keep, const int32_t *limit,
                         int32_t first_key, ptrdiff_t keys, ptrdiff_t rows, int masked) {
    if (masked) step(scores, maximum, sum, keep, limit, first_key, keys, rows, 1);
    else step(scores, maximum, sum, keep, limit, first_key, keys, rows, 0);
}

INLINE void backward(float *scores, float *dp, const float *maximum, const float *inverse_sum, const float *delta,
                     float scale, const int32_t *limit, int32_t first_key, ptrdiff_t keys, ptrdiff_t rows, int masked) {
    for (ptrdiff_t r = 0; r < rows; r += VLEN) {
        vf m = vload(maximum + r), inverse = vload(inverse_sum + r), mean = vload(delta + r);
        vi last = viload(limit + r);
        for (ptrdiff_t k = 0; k < keys; k++) {
            float *s = scores + k * ROWS + r, *d = dp + k * ROWS + r;
            vf p = vexp(vload(s) - m) * inverse, g = p * (vload(d) - mean) * scale;
            if (masked) {
                vi valid = first_key + (int32_t)k <= last;
                p = vselect(valid, p, vset(0));
                g = vselect(valid, g, vset(0));
            }
            vstore(s, p);
            vstore(d, g);
        }
    }
}

static void softmax_backward(float *scores, float *dp, const float *maximum, const float *inverse_sum,
                             const float *delta, float scale, const int32_t *limit, int32_t first_key, ptrdiff_t keys,
                             ptrdiff_t rows, int masked) {
    if (masked) backward(scores, dp, maximum, inverse_sum, delta, scale, limit, first_key, keys, rows, 1);
    else backward(scores, dp, maximum, inverse_sum, delta, scale, limit, first_key, keys, rows, 0);
}

static void row_dots(float *dot, const float *a, const float *b, ptrdiff_t ld, ptrdiff_t rows, ptrdiff_t dim) {
    for (ptrdiff_t i = 0; i < rows; i++, a += ld, b += ld) {
        vf sum = vset(0);
        for (ptrdiff_t j = 0; j < dim; j += VLEN) sum += vload(a + j) * vload(b + j);
        dot[i] = vsum(sum);
    }
}

const attention_ops TIERED(attention_table) = {
    .gather = gather,
    .gather_transposed = gather_transposed,
    .scatter = scatter,
    .softmax_step = softmax_step,
    .softmax_backward = softmax_backward,
    .row_dots = row_dots,
};
