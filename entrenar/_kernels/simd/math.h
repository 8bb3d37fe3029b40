// Elementary functions over vectors: one polynomial each. The errors hold for every float32, with and without FMA: all
// 2^32 arguments were compared with float64 once, and tests/kernels/test_activation.py compares dense samples.
#pragma once
#include "simd/vec.h"

// Nearest integer for |x| < 2^22, by rounding the fraction off the mantissa.
INLINE vf vround(vf x) {
    const vf magic = vset(0x1.8p23f);
    vf shifted = x + magic;
    return shifted - magic;
}
INLINE vi vtoint(vf x) { return __builtin_convertvector(x, vi); }
INLINE vf vtofloat(vi x) { return __builtin_convertvector(x, vf); }
// 2^n for -126 <= n <= 127
INLINE vf vpow2(vi n) { return (vf)((n + 127) << 23); }
INLINE vf vcopysign(vf magnitude, vf sign) {
    return (vf)(((vi)magnitude & 0x7fffffff) | ((vi)sign & (int32_t)0x80000000));
}

// e^x = 2^n e^r with |r| <= ln 2 / 2 and a polynomial of degree 7 for e^r (Cody and Waite, 1980). At most 1.05 ulp;
// overflows to inf above 88.7228, reaches 0 through the subnormals below -103.97, NaN stays NaN.
INLINE vf vexp(vf x) {
    vf bounded = vmin(vset(89.0f), vmax(vset(-104.0f), x));  // operand order keeps NaN
    vf n = vround(bounded * 1.44269504088896341f);
    vf r = bounded - n * 0.693145751953125f;
    r = r - n * 1.428606765330187045e-6f;
    vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r;
    p = p + 1.0f;
    vi whole = vtoint(n), half = whole >> 1;
    return p * vpow2(half) * vpow2(whole - half);  // two steps: 2^n itself may overflow or be subnormal
}

// ln x = e ln 2 + ln m with sqrt(1/2) <= m < sqrt(2) (Cephes logf). At most 0.85 ulp; ln 0 = -inf, ln of a negative is
// NaN.
INLINE vf vlog(vf x) {
    vi tiny = x < 0x1p-126f;
    vf scaled = vselect(tiny, x * 0x1p23f, x);
    vi bits = (vi)scaled;
    vi exponent = ((bits >> 23) & 0xff) - 126 - (tiny & 23);
    vf m = (vf)((bits & 0x007fffff) | 0x3f000000);  // [1/2, 1)
    vi low = m < 0.707106781186547524f;
    vf e = vtofloat(exponent + low);  // a true comparison is -1
    vf y = m + vselect(low, m, vset(0.0f)) - 1.0f;
    vf z = y * y;
    vf p = y * 7.0376836292e-2f - 1.1514610310e-1f;
    p = p * y + 1.1676998740e-1f;
    p = p * y - 1.2420140846e-1f;
    p = p * y + 1.4249322787e-1f;
    p = p * y - 1.6668057665e-1f;
    p = p * y + 2.0000714765e-1f;
    p = p * y - 2.4999993993e-1f;
    p = p * y + 3.3333331174e-1f;
    p = p * y * z;
    p = p - e * 2.12194440e-4f;
    p = p - z * 0.5f;
    vf result = y + p + e * 0.693359375f;
    result = vselect(x == INFINITY, x, result);
    result = vselect(x == 0.0f, vset(-INFINITY), result);
    return vselect((x >= 0.0f), result, vset(NAN));
}

// Odd polynomial below 0.625 (Cephes tanhf), else 1 - 2 / (e^2x + 1). At most 1.4 ulp; the sign of zero stays.
INLINE vf vtanh(vf x) {
    vf a = vabs(x), z = x * x;
    vf p = z * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    p = p * z * x + x;
    vf large = 1.0f - 2.0f / (vexp(a + a) + 1.0f);
    return vcopysign(vselect(a < 0.625f, p, large), x);
}

// cap tanh(x / cap), and x itself below cap / 4096, where x / cap may be subnormal. At most 3.0 ulp.
INLINE vf vsoftcap(vf x, float cap) {
    vf t = x / cap;
    return vselect(vabs(t) < 0x1p-12f, x, vtanh(t) * cap);
}

// 1 / (1 + e^-x), from e^-|x| so that nothing overflows. At most 2.45 ulp.
INLINE vf vsigmoid(vf x) {
    vf e = vexp(-vabs(x));
    return vselect(x < 0.0f, e, vset(1.0f)) / (e + 1.0f);
}

// Odd polynomial below 475/512, else 1 - e^(polynomial) (minimax coefficients by N. Juffa). At most 1.2 ulp.
INLINE vf verf(vf x) {
    vf a = vabs(x), s = x * x;
    vf u = a * -3.88396438e-3f + 2.42546219e-2f;
    vf t = a * -1.72853470e-5f + 3.83197126e-4f;
    t = t * s + u;
    t = t * a - 1.06777877e-1f;
    t = t * a - 6.34846687e-1f;
    t = t * a - 1.28717512e-1f;
    t = t * a - a;
    vf large = vcopysign(1.0f - vexp(t), x);
    large = vselect(a > 4.0f, vcopysign(vset(1.0f), x), large);  // the polynomial is fitted below 4; erf 4 rounds to 1
    vf p = s * -5.96761703e-4f + 4.99119423e-3f;
    p = p * s - 2.67681349e-2f;
    p = p * s + 1.12819925e-1f;
    p = p * s - 3.76125336e-1f;
    p = p * s + 1.28379166e-1f;
    p = p * x + x;
    vf result = vselect(a > 0.927734375f, large, p);
    return vselect(x == x, result, x);
}
