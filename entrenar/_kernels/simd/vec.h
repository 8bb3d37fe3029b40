// One vector type for every tier, through GCC vector extensions: VLEN floats in a `vf`, VLEN int32 in a `vi`.
// The same source is compiled once per tier; TIER is set on the command line and names the exported table.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <math.h>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#define TIER_PASTE_(name, tier) name##_##tier
#define TIER_PASTE(name, tier) TIER_PASTE_(name, tier)
#define TIERED(name) TIER_PASTE(name, TIER)  // norm_table -> norm_table_v3

#if defined(__AVX512F__)
#define VLEN 16
#elif defined(__AVX2__)
#define VLEN 8
#else
#define VLEN 4
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * VLEN)));
typedef int32_t vi __attribute__((vector_size(4 * VLEN)));
typedef uint32_t vu __attribute__((vector_size(4 * VLEN)));
typedef float vf_unaligned __attribute__((vector_size(4 * VLEN), aligned(4), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(4 * VLEN), aligned(4), may_alias));

INLINE vf vset(float x) { return x - (vf){0}; }  // x - 0 keeps -0 and NaN
INLINE vi viset(int32_t x) { return x - (vi){0}; }
INLINE vf vload(const float *p) { return *(const vf_unaligned *)p; }
INLINE void vstore(float *p, vf v) { *(vf_unaligned *)p = v; }
INLINE vi viload(const int32_t *p) { return *(const vi_unaligned *)p; }
INLINE void vistore(int32_t *p, vi v) { *(vi_unaligned *)p = v; }

// The first n lanes (0 < n < VLEN); the rest of the loaded vector is `fill`.
INLINE vf vload_n(const float *p, ptrdiff_t n, float fill) {
    vf v = vset(fill);
    for (ptrdiff_t i = 0; i < n; i++) v[i] = p[i];
    return v;
}
INLINE void vstore_n(float *p, vf v, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i++) p[i] = v[i];
}

// mask lanes are all ones or all zeros, as comparisons of vectors give
INLINE vf vselect(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
INLINE vf vabs(vf x) { return (vf)((vi)x & 0x7fffffff); }

// max and min return the second operand when the first is NaN, as the x86 instructions do
#if VLEN == 16
INLINE vf vmax(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf vmin(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vf vsqrt(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }
INLINE vi round_to_int(vf x) { return (vi)_mm512_cvtps_epi32((__m512)x); }
#elif VLEN == 8
INLINE vf vmax(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vf vmin(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vf vsqrt(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
INLINE vi round_to_int(vf x) { return (vi)_mm256_cvtps_epi32((__m256)x); }
#elif defined(__SSE2__)
INLINE vf vmax(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
INLINE vf vmin(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
INLINE vf vsqrt(vf a) { return (vf)_mm_sqrt_ps((__m128)a); }
INLINE vi round_to_int(vf x) { return (vi)_mm_cvtps_epi32((__m128)x); }
#else
INLINE vf vmax(vf a, vf b) { return vselect(a > b, a, b); }
INLINE vf vmin(vf a, vf b) { return vselect(a < b, a, b); }
INLINE vf vsqrt(vf a) {
    for (int i = 0; i < VLEN; i++) a[i] = sqrtf(a[i]);
    return a;
}
#endif

// Lanes are added in a fixed order, each half to the other until one is left, so that a sum has the same bits on every
// run of a tier.
INLINE float vsum(vf v) {
#if VLEN == 16
    const __m512d wide = (__m512d)v;
    const __m256 eight = (__m256)_mm512_castpd512_pd256(wide) + (__m256)_mm512_extractf64x4_pd(wide, 1);
#elif VLEN == 8
    const __m256 eight = (__m256)v;
#endif
#if VLEN >= 8
    __m128 four = _mm256_castps256_ps128(eight) + _mm256_extractf128_ps(eight, 1);
#elif defined(__SSE2__)
    __m128 four = (__m128)v;
#endif
#if defined(__SSE2__)
    four += _mm_movehl_ps(four, four);
    return _mm_cvtss_f32(four) + _mm_cvtss_f32(_mm_shuffle_ps(four, four, 1));
#else
    float lane[VLEN];
    vstore(lane, v);
    for (int width = VLEN / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lane[i] += lane[i + width];
    return lane[0];
#endif
}
INLINE float vmaximum(vf v) {
    float lane[VLEN];
    vstore(lane, v);
    for (int width = VLEN / 2; width > 0; width /= 2)
        for (int i = 0; i < width; i++) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    return lane[0];
}
