// The tail of a run goes through the same vector code, padded, so that where a run is cut never changes a bit.
#include "simd/optimizer.h"
#include "simd/double.h"

INLINE void sgd_step(vf *p, vf *buffer, vf g, const sgd_options *o) {
    g = g * o->scale + *p * o->weight_decay;
    if (buffer) {
        *buffer = o->first ? g : *buffer * o->momentum + g * (1 - o->dampening);
        g = o->nesterov ? g + *buffer * o->momentum : *buffer;
    }
    *p -= g * o->lr;
}

static void sgd(float *p, float *buffer, const float *g, ptrdiff_t n, const sgd_options *o) {
    ptrdiff_t i = 0;
    vf vp, vb;
    for (; i + VLEN <= n; i += VLEN) {
        vp = vload(p + i);
        if (buffer) vb = vload(buffer + i);
        sgd_step(&vp, buffer ? &vb : NULL, vload(g + i), o);
        vstore(p + i, vp);
        if (buffer) vstore(buffer + i, vb);
    }
    if (i == n) return;
    vp = vload_n(p + i, n - i, 0);
    if (buffer) vb = vload_n(buffer + i, n - i, 0);
    sgd_step(&vp, buffer ? &vb : NULL, vload_n(g + i, n - i, 0), o);
    vstore_n(p + i, vp, n - i);
    if (buffer) vstore_n(buffer + i, vb, n - i);
}

INLINE void adam_step(vf *p, vf *m, vf *v, vf g, const adam_options *o) {
    g = g * o->scale + *p * o->l2;
    *m = *m * o->beta1 + g * o->one_minus_beta1;
    *v = *v * o->beta2 + g * g * o->one_minus_beta2;
    vf denominator = vsqrt(*v) * o->denominator_scale + o->eps;
    *p = *p * o->decay - *m * o->step_size / denominator;
}

static void adam(float *p, float *m, float *v, const float *g, ptrdiff_t n, const adam_options *o) {
    ptrdiff_t i = 0;
    vf vp, vm, vv;
    for (; i + VLEN <= n; i += VLEN) {
        vp = vload(p + i), vm = vload(m + i), vv = vload(v + i);
        adam_step(&vp, &vm, &vv, vload(g + i), o);
        vstore(p + i, vp), vstore(m + i, vm), vstore(v + i, vv);
    }
    if (i == n) return;
    ptrdiff_t rest = n - i;
    vp = vload_n(p + i, rest, 0), vm = vload_n(m + i, rest, 0), vv = vload_n(v + i, rest, 0);
    adam_step(&vp, &vm, &vv, vload_n(g + i, rest, 0), o);
    vstore_n(p + i, vp, rest), vstore_n(m + i, vm, rest), vstore_n(v + i, vv, rest);
}

INLINE void schedulefree_step(vf *y, vf *z, vf *v, vf g, const schedulefree_options *o) {
    g = g * o->scale;
    *v = *v * o->beta2 + g * g * o->one_minus_beta2;
    vf step = g / (vsqrt(*v) * o->denominator_scale + o->eps) + *y * o->weight_decay;
    *y = *y + (*z - *y) * o->average - step * o->y_step;
    *z -= step * o->lr;
}

static void schedulefree(float *y, float *z, float *v, const float *g, ptrdiff_t n, const schedulefree_options *o) {
    ptrdiff_t i = 0;
    vf vy, vz, vv;
    for (; i + VLEN <= n; i += VLEN) {
        vy = vload(y + i), vz = vload(z + i), vv = vload(v + i);
        schedulefree_step(&vy, &vz, &vv, vload(g + i), o);
        vstore(y + i, vy), vstore(z + i, vz), vstore(v + i, vv);
    }
    if (i == n) return;
    ptrdiff_t rest = n - i;
    vy = vload_n(y + i, rest, 0), vz = vload_n(z + i, rest, 0), vv = vload_n(v + i, rest, 0);
    schedulefree_step(&vy, &vz, &vv, vload_n(g + i, rest, 0), o);
    vstore_n(y + i, vy, rest), vstore_n(z + i, vz, rest), vstore_n(v + i, vv, rest);
}

// squares in float64: the square of a large fp32 gradient overflows fp32
static double sum_squares(const float *x, ptrdiff_t n) {
    vd s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    ptrdiff_t i = 0;
    for (; i + 4 * DLEN <= n; i += 4 * DLEN) {
        vd x0 = vload_double(x + i), x1 = vload_double(x + i + DLEN);
        vd x2 = vload_double(x + i + 2 * DLEN), x3 = vload_double(x + i + 3 * DLEN);
        s0 += x0 * x0, s1 += x1 * x1, s2 += x2 * x2, s3 += x3 * x3;
    }
    s0 = (s0 + s1) + (s2 + s3);
    double total = 0;
    for (int lane = 0; lane < DLEN; lane++) total += s0[lane];
    for (; i < n; i++) total += (double)x[i] * x[i];
    return total;
}

static void clamp(float *x, float limit, ptrdiff_t n) {
    ptrdiff_t i = 0;
    for (; i + VLEN <= n; i += VLEN) {
        vf v = vload(x + i);
        v = vselect(v > limit, vset(limit), v);
        vstore(x + i, vselect(v < -limit, vset(-limit), v));
    }
    for (; i < n; i++) x[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
}

const optimizer_ops TIERED(optimizer_table) = {
    .sgd = sgd, .adam = adam, .schedulefree = schedulefree, .sum_squares = sum_squares, .clamp = clamp};
