// Sums accumulate in float64 (memory is the bottleneck, the conversion is free), those over rows by short fp32 blocks.
#include "simd/reduce.h"
#include "simd/double.h"

#define ROW_BLOCK 16  // rows added in fp32 before they go to float64

static double sum(const float *x, ptrdiff_t n) {
    vd s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    ptrdiff_t i = 0;
    for (; i + 4 * DLEN <= n; i += 4 * DLEN) {
        s0 += vload_double(x + i);
        s1 += vload_double(x + i + DLEN);
        s2 += vload_double(x + i + 2 * DLEN);
        s3 += vload_double(x + i + 3 * DLEN);
    }
    s0 = (s0 + s1) + (s2 + s3);
    double total = 0;
    for (int lane = 0; lane < DLEN; lane++) total += s0[lane];
    for (; i < n; i++) total += x[i];
    return total;
}

// NaN propagates: a comparison with NaN is false, so once in `m` it stays there
INLINE vf vmax_nan(vf m, vf x) { return vselect((x > m) | (x != x), x, m); }
INLINE float max_nan(float m, float x) { return x > m || x != x ? x : m; }

static float max(const float *x, ptrdiff_t n) {
    vf m0 = vset(-INFINITY), m1 = m0;
    ptrdiff_t i = 0;
    for (; i + 2 * VLEN <= n; i += 2 * VLEN) {
        m0 = vmax_nan(m0, vload(x + i));
        m1 = vmax_nan(m1, vload(x + i + VLEN));
    }
    for (; i + VLEN <= n; i += VLEN) m0 = vmax_nan(m0, vload(x + i));
    if (i < n) m1 = vmax_nan(m1, vload_n(x + i, n - i, -INFINITY));
    m0 = vmax_nan(m0, m1);
    float m = m0[0];
    for (int lane = 1; lane < VLEN; lane++) m = max_nan(m, m0[lane]);
    return m;
}

// Columns [0, 4 * VLEN) of a block of rows, in registers
INLINE void fold_columns(float *out, const float *x, ptrdiff_t rows, ptrdiff_t stride, vf start, vf step(vf, vf)) {
    vf c0 = start, c1 = start, c2 = start, c3 = start;
    for (ptrdiff_t r = 0; r < rows; r++) {
        const float *row = x + r * stride;
        c0 = step(c0, vload(row));
        c1 = step(c1, vload(row + VLEN));
        c2 = step(c2, vload(row + 2 * VLEN));
        c3 = step(c3, vload(row + 3 * VLEN));
    }
    vstore(out, c0), vstore(out + VLEN, c1), vstore(out + 2 * VLEN, c2), vstore(out + 3 * VLEN, c3);
}
INLINE vf vadd(vf a, vf b) { return a + b; }
static void sum_columns(float *out, const float *x, ptrdiff_t rows, ptrdiff_t stride) {
    fold_columns(out, x, rows, stride, (vf){0}, vadd);
}
static void max_columns(float *out, const float *x, ptrdiff_t rows, ptrdiff_t stride) {
    fold_columns(out, x, rows, stride, vset(-INFINITY), vmax_nan);
}

static void sum_rows(double *acc, const float *x, ptrdiff_t rows, ptrdiff_t stride, ptrdiff_t n) {
    float part[4 * VLEN];
    for (ptrdiff_t r = 0; r < rows; r += ROW_BLOCK) {
        ptrdiff_t count = rows - r < ROW_BLOCK ? rows - r : ROW_BLOCK, i = 0;
        const float *block = x + r * stride;
        for (; i + 4 * VLEN <= n; i += 4 * VLEN) {
            sum_columns(part, block + i, count, stride);
            for (int lane = 0; lane < 4 * VLEN; lane++) acc[i + lane] += part[lane];
        }
        for (; i < n; i++) {
            float s = 0;
            for (ptrdiff_t row = 0; row < count; row++) s += block[row * stride + i];
            acc[i] += s;
        }
    }
}

static void max_rows(double *acc, const float *x, ptrdiff_t rows, ptrdiff_t stride, ptrdiff_t n) {
    float part[4 * VLEN];
    ptrdiff_t i = 0;
    for (; i + 4 * VLEN <= n; i += 4 * VLEN) {
        max_columns(part, x + i, rows, stride);
        for (int lane = 0; lane < 4 * VLEN; lane++) acc[i + lane] = max_nan((float)acc[i + lane], part[lane]);
    }
    for (; i < n; i++) {
        float m = (float)acc[i];
        for (ptrdiff_t row = 0; row < rows; row++) m = max_nan(m, x[row * stride + i]);
        acc[i] = m;
    }
}

const reduce_ops TIERED(reduce_table) = {.sum = sum, .max = max, .sum_rows = sum_rows, .max_rows = max_rows};
