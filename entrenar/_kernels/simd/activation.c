// Elementwise functions and their derivatives; outputs may alias inputs exactly.
#include "simd/activation.h"
#include "simd/math.h"

#define SQRT_HALF 0.70710678118654752f
#define SQRT_2_OVER_PI 0.79788456080286536f
#define INV_SQRT_2PI 0.39894228040143268f
#define GELU_CUBIC 0.044715f

INLINE vf relu_(vf x) { return vselect(x > 0.0f, x, vselect(x == x, vset(0.0f), x)); }
INLINE vf relu_slope(vf x) { return vselect(x > 0.0f, vset(1.0f), vset(0.0f)); }
INLINE vf gelu_(vf x) { return 0.5f * x * (1.0f + verf(x * SQRT_HALF)); }
INLINE vf gelu_slope(vf x) { return 0.5f * (1.0f + verf(x * SQRT_HALF)) + x * INV_SQRT_2PI * vexp(x * x * -0.5f); }
INLINE vf gelu_tanh_(vf x) { return 0.5f * x * (1.0f + vtanh(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x))); }
INLINE vf gelu_tanh_slope(vf x) {
    x = vmin(vset(16.0f), vmax(vset(-16.0f), x));  // constant beyond; x^2 may not overflow. Operand order keeps NaN
    vf t = vtanh(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * SQRT_2_OVER_PI * (1.0f + 3.0f * GELU_CUBIC * x * x);
}
INLINE vf silu_(vf x) { return x * vsigmoid(x); }
INLINE vf silu_slope(vf x) {
    vf s = vsigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}
INLINE vf log_slope(vf x) { return 1.0f / x; }
INLINE vf sigmoid_slope(vf y) { return y * (1.0f - y); }
INLINE vf tanh_slope(vf y) { return 1.0f - y * y; }
INLINE vf exp_slope(vf y) { return y; }
INLINE vf sqrt_slope(vf y) { return 0.5f / y; }
INLINE vf softcap_slope(vf y, float cap) {
    vf t = y / cap;
    return 1.0f - t * t;
}

// The tail is one vector whose missing lanes hold 1, a point where every function is finite.
INLINE void map(float *y, const float *x, ptrdiff_t n, vf function(vf)) {
    ptrdiff_t i = 0;
    for (; i + VLEN <= n; i += VLEN) vstore(y + i, function(vload(x + i)));
    if (i < n) vstore_n(y + i, function(vload_n(x + i, n - i, 1.0f)), n - i);
}
INLINE void map_slope(float *dx, const float *dy, const float *saved, ptrdiff_t n, int accumulate, vf slope(vf)) {
    ptrdiff_t i = 0;
    for (; i + VLEN <= n; i += VLEN) {
        vf d = vload(dy + i) * slope(vload(saved + i));
        vstore(dx + i, accumulate ? vload(dx + i) + d : d);
    }
    if (i < n) {
        vf d = vload_n(dy + i, n - i, 0.0f) * slope(vload_n(saved + i, n - i, 1.0f));
        vstore_n(dx + i, accumulate ? vload_n(dx + i, n - i, 0.0f) + d : d, n - i);
    }
}

static void relu(float *y, const float *x, ptrdiff_t n) { map(y, x, n, relu_); }
static void gelu(float *y, const float *x, ptrdiff_t n) { map(y, x, n, gelu_); }
static void gelu_tanh(float *y, const float *x, ptrdiff_t n) { map(y, x, n, gelu_tanh_); }
static void silu(float *y, const float *x, ptrdiff_t n) { map(y, x, n, silu_); }
static void sigmoid(float *y, const float *x, ptrdiff_t n) { map(y, x, n, vsigmoid); }
static void tanh_forward(float *y, const float *x, ptrdiff_t n) { map(y, x, n, vtanh); }
static void exp_forward(float *y, const float *x, ptrdiff_t n) { map(y, x, n, vexp); }
static void log_forward(float *y, const float *x, ptrdiff_t n) { map(y, x, n, vlog); }
static void sqrt_forward(float *y, const float *x, ptrdiff_t n) { map(y, x, n, vsqrt); }
static void relu_backward(float *dx, const float *dy, const float *saved, ptrdiff_t n, int accumulate) {
    map_slope(dx, dy, saved, n, accumulate, relu_slope);
}
static void gelu_backward(float *dx, const float *dy, const float *saved, ptrdiff_t n, int accumulate) {
    map_slope(dx, dy, saved, n, accumulate, gelu_slope);
}
static void gelu_tanh_backward(float *dx, const float *dy, const float *saved, ptrdiff_t n, int accumulate) {
    map_slope(dx, dy, saved, n, accumulate, gelu_tanh_slope);
}
static void silu_backward(float *dx, const float *dy, const float *saved, ptrdiff_t n, int accumulate) {
    map_slope(dx, dy, saved, n, accumulate, silu_slope);
}
static void log_backward(float *dx, const float *dy, const float *saved, ptrdiff_t n, int accumulate) {
    map_slope(dx, dy, saved, n, accumulate, log_slope);
}
static void sigmoid_backward(float *dx, const float *dy, const float *saved, ptrdiff_t n, int accumulate) {
    map_slope(dx, dy, saved, n, accumulate, sigmoid_slope);
}
static void tanh_backward(float *dx, const float *dy, const float *saved, ptrdiff_t n, int accumulate) {
    map_slope(dx, dy, saved, n, accumulate, tanh_slope);
}
static void exp_backward(float *dx, const float *dy, const float *saved, ptrdiff_t n, int accumulate) {
    map_slope(dx, dy, saved, n, accumulate, exp_slope);
}
static void sqrt_backward(float *dx, const float *dy, const float *saved, ptrdiff_t n, int accumulate) {
    map_slope(dx, dy, saved, n, accumulate, sqrt_slope);
}

// powf is libm's: a vector exp(e log x) loses digits as e grows
static void power(float *y, const float *x, float exponent, ptrdiff_t n) {
    if (exponent == 2.0f)
        for (ptrdiff_t i = 0; i < n; i++) y[i] = x[i] * x[i];
    else
        for (ptrdiff_t i = 0; i < n; i++) y[i] = powf(x[i], exponent);
}
static void power_backward(float *dx, const float *dy, const float *x, float exponent, ptrdiff_t n, int accumulate) {
    for (ptrdiff_t i = 0; i < n; i++) {
        float slope = exponent == 0.0f ? 0.0f : exponent == 2.0f ? 2.0f * x[i] : exponent * powf(x[i], exponent - 1.0f);
        dx[i] = accumulate ? dx[i] + dy[i] * slope : dy[i] * slope;
    }
}

// From y = cap tanh(x / cap): dy/dx = 1 - (y / cap)^2.
static void softcap(float *y, const float *x, float cap, ptrdiff_t n) {
    ptrdiff_t i = 0;
    for (; i + VLEN <= n; i += VLEN) vstore(y + i, vsoftcap(vload(x + i), cap));
    if (i < n) vstore_n(y + i, vsoftcap(vload_n(x + i, n - i, 1.0f), cap), n - i);
}
static void softcap_backward(float *dx, const float *dy, const float *y, float cap, ptrdiff_t n, int accumulate) {
    ptrdiff_t i = 0;
    for (; i + VLEN <= n; i += VLEN) {
        vf d = vload(dy + i) * softcap_slope(vload(y + i), cap);
        vstore(dx + i, accumulate ? vload(dx + i) + d : d);
    }
    if (i < n) {
        vf d = vload_n(dy + i, n - i, 0.0f) * softcap_slope(vload_n(y + i, n - i, 0.0f), cap);
        vstore_n(dx + i, accumulate ? vload_n(dx + i, n - i, 0.0f) + d : d, n - i);
    }
}

// act(gate) up, and its two derivatives
INLINE void gated_map(float *y, const float *gate, const float *up, ptrdiff_t n, vf act(vf)) {
    ptrdiff_t i = 0;
    for (; i + VLEN <= n; i += VLEN) vstore(y + i, act(vload(gate + i)) * vload(up + i));
    if (i < n) vstore_n(y + i, act(vload_n(gate + i, n - i, 1.0f)) * vload_n(up + i, n - i, 1.0f), n - i);
}
static void swiglu(float *y, const float *gate, const float *up, ptrdiff_t n) { gated_map(y, gate, up, n, silu_); }
static void geglu(float *y, const float *gate, const float *up, ptrdiff_t n) { gated_map(y, gate, up, n, gelu_tanh_); }

INLINE void swiglu_vector(vf dy, vf g, vf u, vf *dg, vf *du) {
    vf s = vsigmoid(g), silu_of_g = g * s;
    *du = dy * silu_of_g;
    *dg = dy * u * (s + silu_of_g * (1.0f - s));
}
INLINE void geglu_vector(vf dy, vf g, vf u, vf *dg, vf *du) {
    vf x = vmin(vset(16.0f), vmax(vset(-16.0f), g));  // as in gelu_tanh_slope; tanh is 1 beyond
    vf t = vtanh(SQRT_2_OVER_PI * (x + GELU_CUBIC * x * x * x));
    vf slope = 0.5f * x * (1.0f - t * t) * SQRT_2_OVER_PI * (1.0f + 3.0f * GELU_CUBIC * x * x);
    *du = dy * (0.5f * g * (1.0f + t));
    *dg = dy * u * (0.5f * (1.0f + t) + slope);
}
INLINE void gated_slopes(float *dgate, float *dup, const float *dy, const float *gate, const float *up, ptrdiff_t n,
                         int accumulate_gate, int accumulate_up, void vector(vf, vf, vf, vf *, vf *)) {
    ptrdiff_t i = 0;
    vf dg, du;
    for (; i + VLEN <= n; i += VLEN) {
        vector(vload(dy + i), vload(gate + i), vload(up + i), &dg, &du);
        if (dgate) vstore(dgate + i, accumulate_gate ? vload(dgate + i) + dg : dg);
        if (dup) vstore(dup + i, accumulate_up ? vload(dup + i) + du : du);
    }
    if (i == n) return;
    n -= i;
    vector(vload_n(dy + i, n, 0.0f), vload_n(gate + i, n, 1.0f), vload_n(up + i, n, 1.0f), &dg, &du);
    if (dgate) vstore_n(dgate + i, accumulate_gate ? vload_n(dgate + i, n, 0.0f) + dg : dg, n);
    if (dup) vstore_n(dup + i, accumulate_up ? vload_n(dup + i, n, 0.0f) + du : du, n);
}
static void swiglu_backward(float *dgate, float *dup, const float *dy, const float *gate, const float *up, ptrdiff_t n,
                            int accumulate_gate, int accumulate_up) {
    gated_slopes(dgate, dup, dy, gate, up, n, accumulate_gate, accumulate_up, swiglu_vector);
}
static void geglu_backward(float *dgate, float *dup, const float *dy, const float *gate, const float *up, ptrdiff_t n,
                           int accumulate_gate, int accumulate_up) {
    gated_slopes(dgate, dup, dy, gate, up, n, accumulate_gate, accumulate_up, geglu_vector);
}

const activation_ops TIERED(activation_table) = {
    .relu = relu,
    .gelu = gelu,
    .gelu_tanh = gelu_tanh,
    .silu = silu,
    .sigmoid = sigmoid,
    .tanh = tanh_forward,
    .exp = exp_forward,
    .log = log_forward,
    .sqrt = sqrt_forward,
    .relu_backward = relu_backward,
    .gelu_backward = gelu_backward,
    .gelu_tanh_backward = gelu_tanh_backward,
    .silu_backward = silu_backward,
    .log_backward = log_backward,
    .sigmoid_backward = sigmoid_backward,
    .tanh_backward = tanh_backward,
    .exp_backward = exp_backward,
    .sqrt_backward = sqrt_backward,
    .pow = power,
    .pow_backward = power_backward,
    .swiglu = swiglu,
    .swiglu_backward = swiglu_backward,
    .geglu = geglu,
    .geglu_backward = geglu_backward,
    .softcap = softcap,
    .softcap_backward = softcap_backward,
};
