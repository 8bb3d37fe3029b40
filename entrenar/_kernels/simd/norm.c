// RMSNorm (Zhang and Sennrich, 2019, arXiv 1910.07467) and layer norm (Ba et al., 2016, arXiv 1607.06450) of a row.
#include "simd/norm.h"
#include "simd/vec.h"

// Four sums keep the additions independent and the rounding error that of a sum four (times VLEN) times shorter.
#define REDUCE(total, vector, scalar)                                                                                  \
    do {                                                                                                               \
        vf part[4] = {{0}, {0}, {0}, {0}};                                                                             \
        ptrdiff_t i = 0;                                                                                               \
        for (; i + 4 * VLEN <= dim; i += 4 * VLEN)                                                                     \
            _Pragma("GCC unroll 4") for (int q = 0; q < 4; q++) part[q] += vector(i + q * VLEN);                       \
        for (; i + VLEN <= dim; i += VLEN) part[0] += vector(i);                                                       \
        total = vsum((part[0] + part[1]) + (part[2] + part[3]));                                                       \
        for (; i < dim; i++) total += scalar(i);                                                                       \
    } while (0)
#define V(p, i) vload((p) + (i))

// 1 / sqrt(squares / dim + eps), where `squares` is the sum of (x - shift)^2; where that overflowed, summed in float64
static float reciprocal_deviation(float squares, const float *x, float shift, ptrdiff_t dim, float eps) {
    if (squares <= 3.402823466e38f) return 1.0f / sqrtf(squares / (float)dim + eps);
    double sum = 0.0;
    for (ptrdiff_t i = 0; i < dim; i++) sum += ((double)x[i] - shift) * ((double)x[i] - shift);
    return (float)(1.0 / sqrt(sum / (double)dim + eps));
}

static float rms_forward(float *y, const float *x, const float *w, ptrdiff_t dim, float eps) {
    float squares;
#define VECTOR(i) (V(x, i) * V(x, i))
#define SCALAR(i) (x[i] * x[i])
    REDUCE(squares, VECTOR, SCALAR);
#undef VECTOR
#undef SCALAR
    const float rstd = reciprocal_deviation(squares, x, 0.0f, dim, eps);
    ptrdiff_t i = 0;
    for (; i + VLEN <= dim; i += VLEN) vstore(y + i, V(x, i) * rstd * V(w, i));
    for (; i < dim; i++) y[i] = x[i] * rstd * w[i];
    return rstd;
}

static void rms_backward(float *dx, float *dw, const float *dy, const float *x, const float *w, float rstd,
                         ptrdiff_t dim, int accumulate) {
    if (dx) {
        float dot;
#define VECTOR(i) (V(dy, i) * V(w, i) * V(x, i))
#define SCALAR(i) (dy[i] * w[i] * x[i])
        REDUCE(dot, VECTOR, SCALAR);
#undef VECTOR
#undef SCALAR
        const float back = dot * rstd * rstd / (float)dim;
        ptrdiff_t i = 0;
        for (; i + VLEN <= dim; i += VLEN) {
            vf d = (V(dy, i) * V(w, i) - V(x, i) * back) * rstd;
            vstore(dx + i, accumulate ? V(dx, i) + d : d);
        }
        for (; i < dim; i++) {
            float d = (dy[i] * w[i] - x[i] * back) * rstd;
            dx[i] = accumulate ? dx[i] + d : d;
        }
    }
    if (dw) {
        ptrdiff_t i = 0;
        for (; i + VLEN <= dim; i += VLEN) vstore(dw + i, V(dw, i) + V(dy, i) * V(x, i) * rstd);
        for (; i < dim; i++) dw[i] += dy[i] * x[i] * rstd;
    }
}

static void layer_forward(float *y, float *mean_out, float *rstd_out, const float *x, const float *w, const float *b,
                          ptrdiff_t dim, float eps) {
    float sum, squares;
#define VECTOR(i) V(x, i)
#define SCALAR(i) x[i]
    REDUCE(sum, VECTOR, SCALAR);
#undef VECTOR
#undef SCALAR
    const float rounded = sum / (float)dim;
#define VECTOR(i) (V(x, i) - rounded)
#define SCALAR(i) (x[i] - rounded)
    REDUCE(sum, VECTOR, SCALAR);  // what a long sum of large values has rounded away
#undef VECTOR
#undef SCALAR
    const float mean = rounded + sum / (float)dim;
#define VECTOR(i) ((V(x, i) - mean) * (V(x, i) - mean))
#define SCALAR(i) ((x[i] - mean) * (x[i] - mean))
    REDUCE(squares, VECTOR, SCALAR);  // a second pass: the difference of squares would cancel
#undef VECTOR
#undef SCALAR
    const float rstd = reciprocal_deviation(squares, x, mean, dim, eps);
    ptrdiff_t i = 0;
    for (; i + VLEN <= dim; i += VLEN) {
        vf h = (V(x, i) - mean) * rstd;
        if (w) h *= V(w, i);
        if (b) h += V(b, i);
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
        float sum, dot;
#define VECTOR(i) (w ? V(dy, i) * V(w, i) : V(dy, i))
#define SCALAR(i) (w ? dy[i] * w[i] : dy[i])
        REDUCE(sum, VECTOR, SCALAR);
#undef VECTOR
#undef SCALAR
#define VECTOR(i) ((w ? V(dy, i) * V(w, i) : V(dy, i)) * (V(x, i) - mean))
#define SCALAR(i) ((w ? dy[i] * w[i] : dy[i]) * (x[i] - mean))
        REDUCE(dot, VECTOR, SCALAR);
#undef VECTOR
#undef SCALAR
        const float center = sum / (float)dim, back = dot * rstd * rstd / (float)dim;
        ptrdiff_t i = 0;
        for (; i + VLEN <= dim; i += VLEN) {
            vf g = w ? V(dy, i) * V(w, i) : V(dy, i);
            vf d = (g - center - (V(x, i) - mean) * back) * rstd;
            vstore(dx + i, accumulate ? V(dx, i) + d : d);
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
