// Elementwise functions and their derivatives on contiguous runs. `saved` is the input x or the output y, as named.
#pragma once
#include <stddef.h>

typedef void (*activation_forward)(float *y, const float *x, ptrdiff_t n);
typedef void (*activation_backward)(float *dx, const float *dy, const float *saved, ptrdiff_t n, int accumulate);

typedef void (*parameter_forward)(float *y, const float *x, float parameter, ptrdiff_t n);
typedef void (*parameter_backward)(float *dx, const float *dy, const float *saved, float parameter, ptrdiff_t n,
                                   int accumulate);
typedef void (*gated_forward)(float *y, const float *gate, const float *up, ptrdiff_t n);
// either gradient may be NULL
typedef void (*gated_backward)(float *dgate, float *dup, const float *dy, const float *gate, const float *up,
                               ptrdiff_t n, int accumulate_gate, int accumulate_up);

typedef struct activation_ops {
    activation_forward relu, gelu, gelu_tanh, silu, sigmoid, tanh, exp, log, sqrt;
    // derivatives from x (relu, gelu, gelu_tanh, silu, log) or from y (sigmoid, tanh, exp, sqrt)
    activation_backward relu_backward, gelu_backward, gelu_tanh_backward, silu_backward, log_backward;
    activation_backward sigmoid_backward, tanh_backward, exp_backward, sqrt_backward;
    // x^parameter; parameter tanh(x / parameter). Derivatives from x (pow) or from y (softcap)
    parameter_forward pow, softcap;
    parameter_backward pow_backward, softcap_backward;
    gated_forward swiglu, geglu;
    gated_backward swiglu_backward, geglu_backward;
} activation_ops;
