// What the micro-panels of integers share (gemm_integer.c, gemm_steps.c): the micro-kernel's tile, a scale for steps of
// the contraction, products of 16-bit integers.
#pragma once
#include "simd/gemm.h"
#include "simd/vec.h"

#if VLEN == 16
enum { MR = 12 };
#else
enum { MR = 6 };
#endif
enum { NV = 2, NR = NV * VLEN, PACKMR = (MR + VLEN - 1) / VLEN * VLEN };
enum { CACHE_LINE = 16 };  // floats

#if defined(__SSE2__)
INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }

// The scales of VLEN rows of A or columns of B: their largest magnitudes / limit. Compared as integers, in which NaN
// and infinity are the largest, so that a value that is not finite makes the scale, and with it every product, not
// finite.
INLINE vf block_scale(const float *panel, int width, int kc, float limit, vf *inverse) {
    vi most = {0};
    for (int p = 0; p < kc; p++) {
        vi bits = (vi)vabs(vload(panel + p * width));
#if VLEN == 16
        most = (vi)_mm512_max_epi32((__m512i)most, (__m512i)bits);
#elif VLEN == 8
        most = (vi)_mm256_max_epi32((__m256i)most, (__m256i)bits);
#else
        vi less = most < bits;
        most = (bits & less) | (most & ~less);
#endif
    }
    const vi zero = (vf)most < vset(1e-30f);  // below the rounding error of any sum
    *inverse = vselect(zero, vset(0.0f), vset(limit) / (vf)most);
    return vselect(zero, vset(0.0f), (vf)most * (1.0f / limit));
}

INLINE vi multiply_add16(vi sum, vi a, vi b) {
#if VLEN == 16 && defined(__AVX512VNNI__)
    return (vi)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif VLEN == 16
    return sum + (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif VLEN == 8
    return sum + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
    return sum + (vi)_mm_madd_epi16((__m128i)a, (__m128i)b);
#endif
}

INLINE void prefetch_tile(const float *c, ptrdiff_t ldc, int m) {
    for (int i = 0; i < m; i++)  // C is in no near cache by the time it is written
        for (int j = 0; j < NR; j += CACHE_LINE) __builtin_prefetch(c + i * ldc + j, 1);
}
// c (m, n) = total (m, NR), or += it
INLINE void store_tile(float *c, ptrdiff_t ldc, const float *total, int m, int n, int accumulate) {
    for (int i = 0; i < m; i++) {
        float *to = c + i * ldc;
        const float *from = total + i * NR;
        if (n == NR) {
#pragma GCC unroll 2
            for (int j = 0; j < NR; j += VLEN)
                vstore(to + j, accumulate ? vload(to + j) + vload(from + j) : vload(from + j));
        } else {
            for (int j = 0; j < n; j++) to[j] = accumulate ? to[j] + from[j] : from[j];
        }
    }
}
#endif
