// Elementwise arithmetic on contiguous runs of floats; outputs may alias inputs exactly.
#include "simd/elementwise.h"
#include "simd/vec.h"

typedef vf function(vf y, vf a, vf b);  // of the old y and two operands

INLINE vf vadd(vf y, vf a, vf b) { return (void)y, a + b; }
INLINE vf vsub(vf y, vf a, vf b) { return (void)y, a - b; }
INLINE vf vmul(vf y, vf a, vf b) { return (void)y, a * b; }
INLINE vf vdiv(vf y, vf a, vf b) { return (void)y, a / b; }
INLINE vf vequal(vf y, vf a, vf b) { return (void)y, vselect(a == b, vset(1), vset(0)); }
INLINE vf vmul_add(vf y, vf a, vf b) { return y + a * b; }

// y = f(y, a, b); an operand whose step is 0 is one float. The tail is computed a float at a time in every lane.
INLINE void map(float *y, const float *a, int step_a, const float *b, int step_b, ptrdiff_t n, function *f) {
    const vf all_a = vset(*a), all_b = vset(*b);
    ptrdiff_t i = 0;
    for (; i + VLEN <= n; i += VLEN)
        vstore(y + i, f(vload(y + i), step_a ? vload(a + i) : all_a, step_b ? vload(b + i) : all_b));
    for (; i < n; i++) y[i] = f(vset(y[i]), step_a ? vset(a[i]) : all_a, step_b ? vset(b[i]) : all_b)[0];
}
INLINE void map_runs(float *y, const float *a, const float *b, ptrdiff_t n, function *f) {
    if (n > 0) map(y, a, 1, b, 1, n, f);
}
INLINE void map_scalar(float *y, const float *a, float b, ptrdiff_t n, function *f) {
    if (n > 0) map(y, a, 1, &b, 0, n, f);
}
INLINE void map_from_scalar(float *y, float a, const float *b, ptrdiff_t n, function *f) {
    if (n > 0) map(y, &a, 0, b, 1, n, f);
}

static void add(float *y, const float *a, const float *b, ptrdiff_t n) { map_runs(y, a, b, n, vadd); }
static void sub(float *y, const float *a, const float *b, ptrdiff_t n) { map_runs(y, a, b, n, vsub); }
static void mul(float *y, const float *a, const float *b, ptrdiff_t n) { map_runs(y, a, b, n, vmul); }
static void div_(float *y, const float *a, const float *b, ptrdiff_t n) { map_runs(y, a, b, n, vdiv); }
static void equal(float *y, const float *a, const float *b, ptrdiff_t n) { map_runs(y, a, b, n, vequal); }
static void mul_add(float *y, const float *a, const float *b, ptrdiff_t n) { map_runs(y, a, b, n, vmul_add); }
static void add_scalar(float *y, const float *a, float b, ptrdiff_t n) { map_scalar(y, a, b, n, vadd); }
static void scale(float *y, const float *a, float b, ptrdiff_t n) { map_scalar(y, a, b, n, vmul); }
static void div_scalar(float *y, const float *a, float b, ptrdiff_t n) { map_scalar(y, a, b, n, vdiv); }
static void equal_scalar(float *y, const float *a, float b, ptrdiff_t n) { map_scalar(y, a, b, n, vequal); }
static void scale_add(float *y, const float *a, float b, ptrdiff_t n) { map_scalar(y, a, b, n, vmul_add); }
static void scalar_sub(float *y, float a, const float *b, ptrdiff_t n) { map_from_scalar(y, a, b, n, vsub); }
static void scalar_div(float *y, float a, const float *b, ptrdiff_t n) { map_from_scalar(y, a, b, n, vdiv); }
static void fill(float *y, float a, ptrdiff_t n) {
    ptrdiff_t i = 0;
    for (; i + VLEN <= n; i += VLEN) vstore(y + i, vset(a));
    for (; i < n; i++) y[i] = a;
}

const elementwise_ops TIERED(elementwise_table) = {
    .add = add,
    .sub = sub,
    .mul = mul,
    .div = div_,
    .equal = equal,
    .add_scalar = add_scalar,
    .scale = scale,
    .div_scalar = div_scalar,
    .equal_scalar = equal_scalar,
    .scalar_sub = scalar_sub,
    .scalar_div = scalar_div,
    .scale_add = scale_add,
    .mul_add = mul_add,
    .fill = fill,
};
