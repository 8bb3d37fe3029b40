// Loops that do nothing but what is measured; sums are held in registers, so that the compiler leaves none out.
#include "simd/peak.h"
#include "simd/vec.h"

enum { CHAINS = 12 };  // independent sums: more than latency x units of any CPU, fewer than the registers of AVX2
#ifdef __SSE2__
#define REGISTER "+x"
#else
#define REGISTER "+w"
#endif

INLINE vf step_fp32(vf sum, vf a) {
    sum = sum * a + a;
    __asm__ volatile("" : REGISTER(sum));
    return sum;
}

static double spin_fp32(ptrdiff_t rounds) {
    const vf a = vset(0.75f);
    vf s0 = a, s1 = a, s2 = a, s3 = a, s4 = a, s5 = a, s6 = a, s7 = a, s8 = a, s9 = a, s10 = a, s11 = a;
    for (ptrdiff_t r = 0; r < rounds; r++) {
        s0 = step_fp32(s0, a);
        s1 = step_fp32(s1, a);
        s2 = step_fp32(s2, a);
        s3 = step_fp32(s3, a);
        s4 = step_fp32(s4, a);
        s5 = step_fp32(s5, a);
        s6 = step_fp32(s6, a);
        s7 = step_fp32(s7, a);
        s8 = step_fp32(s8, a);
        s9 = step_fp32(s9, a);
        s10 = step_fp32(s10, a);
        s11 = step_fp32(s11, a);
    }
    return 2.0 * CHAINS * VLEN * (double)rounds;
}

#if defined(__AVX512BW__)
typedef __m512i integers;
#elif defined(__AVX2__)
typedef __m256i integers;
#endif

#if defined(__AVX2__)
// without VNNI a product and an addition; `b` is opaque: no step shares another's product
INLINE integers step_int16(integers sum, integers a) {
    integers b = a;
    __asm__ volatile("" : REGISTER(b));
#if defined(__AVX512VNNI__)
    sum = _mm512_dpwssd_epi32(sum, a, b);
#elif defined(__AVX512BW__)
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#else
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
#endif
    __asm__ volatile("" : REGISTER(sum));
    return sum;
}

static double spin_int16(ptrdiff_t rounds) {
    integers a;
    memset(&a, 1, sizeof a);
    integers s0 = a, s1 = a, s2 = a, s3 = a, s4 = a, s5 = a, s6 = a, s7 = a, s8 = a, s9 = a, s10 = a, s11 = a;
    for (ptrdiff_t r = 0; r < rounds; r++) {
        s0 = step_int16(s0, a);
        s1 = step_int16(s1, a);
        s2 = step_int16(s2, a);
        s3 = step_int16(s3, a);
        s4 = step_int16(s4, a);
        s5 = step_int16(s5, a);
        s6 = step_int16(s6, a);
        s7 = step_int16(s7, a);
        s8 = step_int16(s8, a);
        s9 = step_int16(s9, a);
        s10 = step_int16(s10, a);
        s11 = step_int16(s11, a);
    }
    return 2.0 * CHAINS * (2 * VLEN) * (double)rounds;
}
#endif

#if defined(__AVX512VNNI__)
INLINE integers step_int8(integers sum, integers a) {
    sum = _mm512_dpbusd_epi32(sum, a, a);
    __asm__ volatile("" : REGISTER(sum));
    return sum;
}

static double spin_int8(ptrdiff_t rounds) {
    integers a;
    memset(&a, 1, sizeof a);
    integers s0 = a, s1 = a, s2 = a, s3 = a, s4 = a, s5 = a, s6 = a, s7 = a, s8 = a, s9 = a, s10 = a, s11 = a;
    for (ptrdiff_t r = 0; r < rounds; r++) {
        s0 = step_int8(s0, a);
        s1 = step_int8(s1, a);
        s2 = step_int8(s2, a);
        s3 = step_int8(s3, a);
        s4 = step_int8(s4, a);
        s5 = step_int8(s5, a);
        s6 = step_int8(s6, a);
        s7 = step_int8(s7, a);
        s8 = step_int8(s8, a);
        s9 = step_int8(s9, a);
        s10 = step_int8(s10, a);
        s11 = step_int8(s11, a);
    }
    return 2.0 * CHAINS * (4 * VLEN) * (double)rounds;
}
#endif

static double read(const float *y, ptrdiff_t n) {
    vf sum[4] = {{0}};
    for (ptrdiff_t i = 0; i < n; i += 4 * VLEN)
        for (int j = 0; j < 4; j++) sum[j] += vload(y + i + j * VLEN);
    return sum[0][0] + sum[1][0] + sum[2][0] + sum[3][0];
}

static void update(float *x, const float *y, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += VLEN) vstore(x + i, 0.5f * vload(x + i) + vload(y + i));
}

static void triad(float *x, const float *y, const float *z, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += VLEN) vstore(x + i, 0.5f * vload(z + i) + vload(y + i));
}

const peak_ops TIERED(peak_table) = {
    .fp32 = spin_fp32,
#if defined(__AVX2__)
    .int16 = spin_int16,
#endif
#if defined(__AVX512VNNI__)
    .int8 = spin_int8,
#endif
    .read = read,
    .update = update,
    .triad = triad,
};
