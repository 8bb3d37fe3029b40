// Softmax and cross-entropy of one row; the maximum is subtracted first, so that nothing overflows.
#include "simd/softmax.h"
#include "simd/math.h"

static float row_max(const float *x, ptrdiff_t n) {
    vf best = vset(-INFINITY);
    ptrdiff_t i = 0;
    for (; i + VLEN <= n; i += VLEN) best = vmax(vload(x + i), best);
    if (i < n) best = vmax(vload_n(x + i, n - i, -INFINITY), best);
    return vmaximum(best);
}

// sum e^(x - shift), in VLEN running sums
static float sum_exp(const float *x, float shift, ptrdiff_t n) {
    vf sum = {0};
    ptrdiff_t i = 0;
    for (; i + VLEN <= n; i += VLEN) sum += vexp(vload(x + i) - shift);
    if (i < n) sum += vexp(vload_n(x + i, n - i, -INFINITY) - shift);
    return vsum(sum);
}

static float log_sum_exp(const float *x, ptrdiff_t n) {
    float shift = row_max(x, n);
    return shift == INFINITY ? INFINITY : shift + logf(sum_exp(x, shift, n));
}

static void softmax(float *y, const float *x, ptrdiff_t n) {
    const float shift = row_max(x, n), inverse = 1.0f / sum_exp(x, shift, n);
    ptrdiff_t i = 0;
    for (; i + VLEN <= n; i += VLEN) vstore(y + i, vexp(vload(x + i) - shift) * inverse);
    if (i < n) vstore_n(y + i, vexp(vload_n(x + i, n - i, 0.0f) - shift) * inverse, n - i);
}

static void softmax_backward(float *dx, const float *dy, const float *y, ptrdiff_t n, int accumulate) {
    vf part = {0};
    ptrdiff_t i = 0;
    for (; i + VLEN <= n; i += VLEN) part += vload(dy + i) * vload(y + i);
    float dot = vsum(part);
    for (; i < n; i++) dot += dy[i] * y[i];
    for (i = 0; i + VLEN <= n; i += VLEN) {
        vf d = vload(y + i) * (vload(dy + i) - dot);
        vstore(dx + i, accumulate ? vload(dx + i) + d : d);
    }
    for (; i < n; i++) {
        float d = y[i] * (dy[i] - dot);
        dx[i] = accumulate ? dx[i] + d : d;
    }
}

static void log_softmax(float *y, const float *x, ptrdiff_t n) {
    const float shift = row_max(x, n), log_sum = logf(sum_exp(x, shift, n));
    for (ptrdiff_t i = 0; i < n; i++) y[i] = x[i] - shift - log_sum;
}

static void log_softmax_backward(float *dx, const float *dy, const float *y, ptrdiff_t n, int accumulate) {
    vf part = {0};
    ptrdiff_t i = 0;
    for (; i + VLEN <= n; i += VLEN) part += vload(dy + i);
    float total = vsum(part);
    for (; i < n; i++) total += dy[i];
    for (i = 0; i + VLEN <= n; i += VLEN) {
        vf d = vload(dy + i) - vexp(vload(y + i)) * total;
        vstore(dx + i, accumulate ? vload(dx + i) + d : d);
    }
    if (i < n) {
        vf d = vload_n(dy + i, n - i, 0.0f) - vexp(vload_n(y + i, n - i, 0.0f)) * total;
        vstore_n(dx + i, accumulate ? vload_n(dx + i, n - i, 0.0f) + d : d, n - i);
    }
}

static void cross_entropy_backward(float *dx, const float *x, float lse, ptrdiff_t target, float scale, ptrdiff_t n,
                                   int accumulate) {
    ptrdiff_t i = 0;
    for (; i + VLEN <= n; i += VLEN) {
        vf d = vexp(vload(x + i) - lse) * scale;
        vstore(dx + i, accumulate ? vload(dx + i) + d : d);
    }
    if (i < n) {
        vf d = vexp(vload_n(x + i, n - i, 0.0f) - lse) * scale;
        vstore_n(dx + i, accumulate ? vload_n(dx + i, n - i, 0.0f) + d : d, n - i);
    }
    dx[target] -= scale;
}

const softmax_ops TIERED(softmax_table) = {
    .log_sum_exp = log_sum_exp,
    .softmax = softmax,
    .softmax_backward = softmax_backward,
    .log_softmax = log_softmax,
    .log_softmax_backward = log_softmax_backward,
    .cross_entropy_backward = cross_entropy_backward,
};
