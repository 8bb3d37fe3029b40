// RMSNorm (Zhang and Sennrich, 2019, arXiv 1910.07467) and layer norm (Ba et al., 2016, arXiv 1607.06450) of a row.
#include "simd/norm.h"
#include "simd/vec.h"

// What a sum over a row may be of; NULL where a term has no use for it.
typedef struct {
    const float *x, *w, *dy;
    float shift;
} operands;
typedef vf load(const float *p, ptrdiff_t i);
typedef vf term(const operands *o, ptrdiff_t i, load *at);

INLINE vf load_vector(const float *p, ptrdiff_t i) { return vload(p + i); }
INLINE vf load_everywhere(const float *p, ptrdiff_t i) { return vset(p[i]); }

// Four sums keep the additions independent and the rounding error that of a sum four (times VLEN) times shorter. The
// tail is added a float at a time, in every lane.
INLINE float sum_over_row(const operands o, ptrdiff_t dim, term *f) {
    vf part[4] = {{0}, {0}, {0}, {0}};
    ptrdiff_t i = 0;
    for (; i + 4 * VLEN <= dim; i += 4 * VLEN)
        _Pragma("GCC unroll 4") for (int q = 0; q < 4; q++) part[q] += f(&o, i + q * VLEN, load_vector);
    for (; i + VLEN <= dim; i += VLEN) part[0] += f(&o, i, load_vector);
    vf total = vset(vsum((part[0] + part[1]) + (part[2] + part[3])));
    for (; i < dim; i++) total += f(&o, i, load_everywhere);
    return total[0];
}
INLINE vf value(const operands *o, ptrdiff_t i, load *at) { return at(o->x, i); }
INLINE vf deviation(const operands *o, ptrdiff_t i, load *at) { return at(o->x, i) - o->shift; }
INLINE vf square(const operands *o, ptrdiff_t i, load *at) { return at(o->x, i) * at(o->x, i); }
INLINE vf squared_deviation(const operands *o, ptrdiff_t i, load *at) {
    return (at(o->x, i) - o->shift) * (at(o->x, i) - o->shift);
}
INLINE vf gradient_value(const operands *o, ptrdiff_t i, load *at) { return at(o->dy, i) * at(o->w, i) * at(o->x, i); }
INLINE vf gradient(const operands *o, ptrdiff_t i, load *at) {
    return o->w ? at(o->dy, i) * at(o->w, i) : at(o->dy, i);
}
INLINE vf gradient_deviation(const operands *o, ptrdiff_t i, load *at) {
    return gradient(o, i, at) * (at(o->x, i) - o->shift);
}

// 1 / sqrt(squares / dim + eps), where `squares` is the sum of (x - shift)^2; where that overflowed, summed in float64
static float reciprocal_deviation(float squares, const float *x, float shift, ptrdiff_t dim, float eps) {
    if (squares <= 3.402823466e38f) return 1.0f / sqrtf(squares / (float)dim + eps);
    double sum = 0.0;
    for (ptrdiff_t i = 0; i < dim; i++) sum += ((double)x[i] - shift) * ((double)x[i] - shift);
    return (float)(1.0 / sqrt(sum / (double)dim + eps));
}

static float rms_forward(float *y, const float *x, const float *w, ptrdiff_t dim, float eps) {
    const float squares = sum_over_row((operands){.x = x}, dim, square);
    const float rstd = reciprocal_deviation(squares, x, 0.0f, dim, eps);
    ptrdiff_t i = 0;
    for (; i + VLEN <= dim; i += VLEN) vstore(y + i, vload(x + i) * rstd * vload(w + i));
    for (; i < dim; i++) y[i] = x[i] * rstd * w[i];
    return rstd;
}

static void rms_backward(float *dx, float *dw, const float *dy, const float *x, const float *w, float rstd,
                         ptrdiff_t dim, int accumulate) {
    if (dx) {
        const float dot = sum_over_row((operands){x, w, dy, 0}, dim, gradient_value);
        const float back = dot * rstd * rstd / (float)dim;
        ptrdiff_t i = 0;
        for (; i + VLEN <= dim; i += VLEN) {
            vf d = (vload(dy + i) * vload(w + i) - vload(x + i) * back) * rstd;
            vstore(dx + i, accumulate ? vload(dx + i) + d : d);
        }
        for (; i < dim; i++) {
            float d = (dy[i] * w[i] - x[i] * back) * rstd;
            dx[i] = accumulate ? dx[i] + d : d;
        }
    }
    if (dw) {
        ptrdiff_t i = 0;
        for (; i + VLEN <= dim; i += VLEN) vstore(dw + i, vload(dw + i) + vload(dy + i) * vload(x + i) * rstd);
        for (; i < dim; i++) dw[i] += dy[i] * x[i] * rstd;
    }
}

static void layer_forward(float *y, float *mean_out, float *rstd_out, const float *x, const float *w, const float *b,
                          ptrdiff_t dim, float eps) {
    const float rounded = sum_over_row((operands){.x = x}, dim, value) / (float)dim;
    // add what a long sum of large values rounds off
    const float mean = rounded + sum_over_row((operands){.x = x, .shift = rounded}, dim, deviation) / (float)dim;
    // a second pass: the difference of squares would cancel
    const float squares = sum_over_row((operands){.x = x, .shift = mean}, dim, squared_deviation);
    const float rstd = reciprocal_deviation(squares, x, mean, dim, eps);
    ptrdiff_t i = 0;
    for (; i + VLEN <= dim; i += VLEN) {
        vf h = (vload(x + i) - mean) * rstd;
        if (w) h *= vload(w + i);
        if (b) h += vload(b + i);
        vstore(y + i, h);
    }
    for (; i < dim; i++) {
        float h = (x[i] - mean) * rstd;
        if (w) h *= w[i];
        if (b) h += b[i];
        y[i] = h;
    }
    *mean_out = mean;
    *rstd_out = rstd;
}

static void layer_backward(float *dx, float *dw, float *db, const float *dy, const float *x, const float *w, float mean,
                           float rstd, ptrdiff_t dim, int accumulate) {
    if (dx) {
        const float sum = sum_over_row((operands){x, w, dy, 0}, dim, gradient);
        const float dot = sum_over_row((operands){x, w, dy, mean}, dim, gradient_deviation);
        const float center = sum / (float)dim, back = dot * rstd * rstd / (float)dim;
        ptrdiff_t i = 0;
        for (; i + VLEN <= dim; i += VLEN) {
            vf g = w ? vload(dy + i) * vload(w + i) : vload(dy + i);
            vf d = (g - center - (vload(x + i) - mean) * back) * rstd;
            vstore(dx + i, accumulate ? vload(dx + i) + d : d);
        }
        for (; i < dim; i++) {
            float d = ((w ? dy[i] * w[i] : dy[i]) - center - (x[i] - mean) * back) * rstd;
            dx[i] = accumulate ? dx[i] + d : d;
        }
    }
    for (ptrdiff_t i = 0; dw && i < dim; i++) dw[i] += dy[i] * (x[i] - mean) * rstd;
    for (ptrdiff_t i = 0; db && i < dim; i++) db[i] += dy[i];
}

const norm_ops TIERED(norm_table) = {
    .rms_forward = rms_forward,
    .rms_backward = rms_backward,
    .layer_forward = layer_forward,
    .layer_backward = layer_backward,
};
