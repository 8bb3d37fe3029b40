// Elementwise arithmetic on contiguous runs of floats; outputs may alias inputs exactly.
#include "simd/elementwise.h"
#include "simd/vec.h"

// `vector` is the expression over vectors, `scalar` the same over the floats of the tail
#define LOOP(vector, scalar)                                                                                           \
    ptrdiff_t i = 0;                                                                                                   \
    for (; i + VLEN <= n; i += VLEN) vstore(y + i, vector);                                                            \
    for (; i < n; i++) y[i] = scalar;

static void add(float *y, const float *a, const float *b, ptrdiff_t n) {
    LOOP(vload(a + i) + vload(b + i), a[i] + b[i])
}
static void sub(float *y, const float *a, const float *b, ptrdiff_t n) {
    LOOP(vload(a + i) - vload(b + i), a[i] - b[i])
}
static void mul(float *y, const float *a, const float *b, ptrdiff_t n) {
    LOOP(vload(a + i) * vload(b + i), a[i] * b[i])
}
static void div_(float *y, const float *a, const float *b, ptrdiff_t n) {
    LOOP(vload(a + i) / vload(b + i), a[i] / b[i])
}
static void equal(float *y, const float *a, const float *b, ptrdiff_t n) {
    LOOP(vselect(vload(a + i) == vload(b + i), vset(1), vset(0)), a[i] == b[i])
}
static void add_scalar(float *y, const float *a, float b, ptrdiff_t n) { LOOP(vload(a + i) + b, a[i] + b) }
static void scale(float *y, const float *a, float b, ptrdiff_t n) { LOOP(vload(a + i) * b, a[i] * b) }
static void div_scalar(float *y, const float *a, float b, ptrdiff_t n) { LOOP(vload(a + i) / b, a[i] / b) }
static void equal_scalar(float *y, const float *a, float b, ptrdiff_t n) {
    LOOP(vselect(vload(a + i) == b, vset(1), vset(0)), a[i] == b)
}
static void scalar_sub(float *y, float a, const float *b, ptrdiff_t n) { LOOP(a - vload(b + i), a - b[i]) }
static void scalar_div(float *y, float a, const float *b, ptrdiff_t n) { LOOP(a / vload(b + i), a / b[i]) }
static void scale_add(float *y, const float *a, float b, ptrdiff_t n) {
    LOOP(vload(y + i) + vload(a + i) * b, y[i] + a[i] * b)
}
static void mul_add(float *y, const float *a, const float *b, ptrdiff_t n) {
    LOOP(vload(y + i) + vload(a + i) * vload(b + i), y[i] + a[i] * b[i])
}
static void fill(float *y, float a, ptrdiff_t n) { LOOP(vset(a), a) }

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
