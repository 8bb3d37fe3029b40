// Tiles of attention (see attention.h), in scratch that fits L1 and L2.
#include "simd/attention.h"
#include <float.h>
#include "simd/math.h"
#include "simd/skinny.h"
#include "simd/vec.h"

#define ROWS ATTENTION_ROWS
enum { AHEAD = 8 };  // rows by which `gather` prefetches ahead
_Static_assert((int)SKINNY_ONES >= (int)ATTENTION_ROWS && (int)SKINNY_ONES >= (int)ATTENTION_KEYS,
               "products that add read skinny_ones");

static const float *row_of(const float *x, const attention_rows *view, ptrdiff_t i) {
    ptrdiff_t r = view->first + i;
    return x + r / view->group * view->stride + r % view->group * view->dim;
}

static void gather(float *tile, ptrdiff_t ld, const float *x, const attention_rows *view) {
    ptrdiff_t dim = view->dim, whole = dim / VLEN * VLEN;
    for (ptrdiff_t i = 0; i < view->rows; i++, tile += ld) {
        const float *row = row_of(x, view, i);
        // a cache of keys is no longer in L2, and the hardware prefetcher does not follow parts of rows
        for (ptrdiff_t j = 0; j < dim; j += 16) __builtin_prefetch(row + AHEAD * view->stride + j);
        for (ptrdiff_t j = 0; j < whole; j += VLEN) vstore(tile + j, vload(row + j));
        if (whole < dim) vstore(tile + whole, vload_n(row + whole, dim - whole, 0));
    }
}

static void prefetch(const float *x, const attention_rows *view) {
    for (ptrdiff_t i = 0; i < view->rows; i++, x += view->stride)
        for (ptrdiff_t j = 0; j < view->dim; j += 16) __builtin_prefetch(x + j, 0, 2);  // L1 is too small for all
}

static void gather_transposed(float *tile, ptrdiff_t ld, const float *x, const attention_rows *view, float scale) {
    ptrdiff_t whole = view->rows / VLEN * VLEN;
    for (ptrdiff_t i = 0; i < whole; i += VLEN) {
        const float *row[VLEN];
        for (int lane = 0; lane < VLEN; lane++) row[lane] = row_of(x, view, i + lane);
        for (ptrdiff_t j = 0; j < view->dim; j++) {
            vf v;
            for (int lane = 0; lane < VLEN; lane++) v[lane] = row[lane][j];
            vstore(tile + j * ld + i, v * scale);
        }
    }
    if (whole == view->rows) return;
    for (ptrdiff_t j = 0; j < view->dim; j++) vstore(tile + j * ld + whole, vset(0));
    for (ptrdiff_t i = whole; i < view->rows; i++) {
        const float *row = row_of(x, view, i);
        for (ptrdiff_t j = 0; j < view->dim; j++) tile[j * ld + i] = row[j] * scale;
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

// `masked` and `capped` are constants at every call, so that tiles that each row sees whole skip the comparisons
INLINE vi seen(const attention_tile *t, ptrdiff_t r, ptrdiff_t k) {
    int32_t key = t->first_key + (int32_t)k;
    return (key <= viload(t->limit + r)) & (key >= viload(t->start + r));
}

INLINE void step(const attention_tile t, float *row_max, float *row_sum, float *correction, int masked, int capped) {
    for (ptrdiff_t r = 0; r < t.rows; r += VLEN) {
        vf before = vload(row_max + r), m = before;
        for (ptrdiff_t k = 0; k < t.keys; k++) {
            vf s = vload(t.scores + k * ROWS + r);
            if (capped) vstore(t.scores + k * ROWS + r, s = vsoftcap(s, t.softcap));
            m = vmax(masked ? vselect(seen(&t, r, k), s, vset(-FLT_MAX)) : s, m);
        }
        vf factor = vexp(before - m), total = vload(row_sum + r) * factor;
        for (ptrdiff_t k = 0; k < t.keys; k++) {
            vf p = vexp(vload(t.scores + k * ROWS + r) - m);
            if (masked) p = vselect(seen(&t, r, k), p, vset(0));
            total += p;
            vstore(t.scores + k * ROWS + r, p);
        }
        vstore(row_max + r, m);
        vstore(row_sum + r, total);
        vstore(correction + r, factor);
    }
}

static void softmax_step(const attention_tile *t, float *row_max, float *row_sum, float *correction) {
    int capped = t->softcap != 0;
    if (t->masked && capped) step(*t, row_max, row_sum, correction, 1, 1);
    else if (t->masked) step(*t, row_max, row_sum, correction, 1, 0);
    else if (capped) step(*t, row_max, row_sum, correction, 0, 1);
    else step(*t, row_max, row_sum, correction, 0, 0);
}

INLINE void backward(const attention_tile t, float *dp, const float *row_max, const float *inverse_row_sum,
                     const float *delta, float scale, int masked, int capped) {
    for (ptrdiff_t r = 0; r < t.rows; r += VLEN) {
        vf m = vload(row_max + r), inverse = vload(inverse_row_sum + r), mean = vload(delta + r);
        for (ptrdiff_t k = 0; k < t.keys; k++) {
            float *s = t.scores + k * ROWS + r, *d = dp + k * ROWS + r;
            vf score = capped ? vsoftcap(vload(s), t.softcap) : vload(s), tanh = score / t.softcap;
            vf p = vexp(score - m) * inverse, g = p * (vload(d) - mean) * scale;
            if (capped) g *= 1.0f - tanh * tanh;
            if (masked) {
                vi valid = seen(&t, r, k);
                p = vselect(valid, p, vset(0));
                g = vselect(valid, g, vset(0));
            }
            vstore(s, p);
            vstore(d, g);
        }
    }
}

static void softmax_backward(const attention_tile *t, float *dp, const float *row_max, const float *inverse_row_sum,
                             const float *delta, float scale) {
    int capped = t->softcap != 0;
    if (t->masked && capped) backward(*t, dp, row_max, inverse_row_sum, delta, scale, 1, 1);
    else if (t->masked) backward(*t, dp, row_max, inverse_row_sum, delta, scale, 1, 0);
    else if (capped) backward(*t, dp, row_max, inverse_row_sum, delta, scale, 0, 1);
    else backward(*t, dp, row_max, inverse_row_sum, delta, scale, 0, 0);
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
    .prefetch = prefetch,
    .gather_transposed = gather_transposed,
    .scatter = scatter,
    .softmax_step = softmax_step,
    .softmax_backward = softmax_backward,
    .row_dots = row_dots,
};
