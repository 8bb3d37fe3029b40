// Optimizer updates on contiguous runs, each one pass over memory.
#pragma once
#include <stddef.h>

typedef struct sgd_options {
    float scale;  // of the gradient: clipping costs no pass of its own
    float lr, momentum, dampening, weight_decay;
    int nesterov;
    int first;  // the momentum buffer starts as the gradient
} sgd_options;

typedef struct adam_options {
    float scale;  // of the gradient
    float beta1, beta2, one_minus_beta1, one_minus_beta2;
    float step_size;          // lr / (1 - beta1^t)
    float denominator_scale;  // 1 / sqrt(1 - beta2^t)
    float eps;
    float decay;  // AdamW: 1 - lr * weight_decay multiplies the parameter; 1 for Adam
    float l2;     // Adam: weight_decay * parameter is added to the gradient; 0 for AdamW
} adam_options;

typedef struct schedulefree_options {
    float scale;  // of the gradient
    float beta2, one_minus_beta2;
    float denominator_scale;  // 1 / sqrt(1 - beta2^t)
    float eps, weight_decay, lr;
    float average;  // c: the share of z in the average of this step
    float y_step;   // lr (1 - beta1 (1 - c)), what y moves by
} schedulefree_options;

typedef struct optimizer_ops {
    void (*sgd)(float *p, float *buffer, const float *g, ptrdiff_t n,
                const sgd_options *o);  // buffer NULL: no momentum
    void (*adam)(float *p, float *m, float *v, const float *g, ptrdiff_t n, const adam_options *o);
    void (*schedulefree)(float *y, float *z, float *v, const float *g, ptrdiff_t n, const schedulefree_options *o);
    double (*sum_squares)(const float *x, ptrdiff_t n);
    void (*clamp)(float *x, float limit, ptrdiff_t n);  // into [-limit, limit]; NaN stays
} optimizer_ops;
