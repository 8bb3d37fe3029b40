// What the machine can do at most, measured: multiply-add rates of the registers, and streams through memory.
// Compiled by machine.py with the flags of the tier in use; vectors are as wide as those flags allow.
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define FLOATS (BYTES / 4)
#define CHAINS 12  // independent sums: more than latency x units of any CPU, fewer than the registers of AVX2

typedef float vector __attribute__((vector_size(BYTES)));

int peak_uses_cpu_time = 0;  // set by machine.py

static double now(void) {
    struct timespec t;
    clock_gettime(peak_uses_cpu_time ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#define EACH(m) m(0) m(1) m(2) m(3) m(4) m(5) m(6) m(7) m(8) m(9) m(10) m(11)  // CHAINS of them
#define SUM(i) s##i = start,
#define HOLD(i) __asm__ volatile("" : "+" REGISTER(s##i));  // in a register, and never optimised away
#ifdef __SSE2__
#define REGISTER "x"
#else
#define REGISTER "w"
#endif

// `rounds` times CHAINS steps, each of which waits for nothing but its own sum
#define SPIN(name, type, STEP)                                                                                         \
    static void name(ptrdiff_t rounds, type start, type a) {                                                           \
        type EACH(SUM) b = a;                                                                                          \
        for (ptrdiff_t r = 0; r < rounds; r++) { EACH(STEP) }                                                          \
        (void)b;                                                                                                       \
    }
#define FMA(i)                                                                                                         \
    s##i = s##i * a + b;                                                                                               \
    HOLD(i)
SPIN(spin_fp32, vector, FMA)

#if defined(__AVX512VNNI__)
#define DOT16(i)                                                                                                       \
    s##i = _mm512_dpwssd_epi32(s##i, a, b);                                                                            \
    HOLD(i)
#define DOT8(i)                                                                                                        \
    s##i = _mm512_dpbusd_epi32(s##i, a, b);                                                                            \
    HOLD(i)
typedef __m512i integers;
SPIN(spin_int16, integers, DOT16)
SPIN(spin_int8, integers, DOT8)
#elif defined(__AVX512BW__)
// without VNNI a product and an addition; the product's operand is opaque, so no step can share another's product
#define DOT16(i)                                                                                                       \
    __asm__ volatile("" : "+x"(b));                                                                                    \
    s##i = _mm512_add_epi32(s##i, _mm512_madd_epi16(a, b));                                                            \
    HOLD(i)
typedef __m512i integers;
SPIN(spin_int16, integers, DOT16)
#elif defined(__AVX2__)
#define DOT16(i)                                                                                                       \
    __asm__ volatile("" : "+x"(b));                                                                                    \
    s##i = _mm256_add_epi32(s##i, _mm256_madd_epi16(a, b));                                                            \
    HOLD(i)
typedef __m256i integers;
SPIN(spin_int16, integers, DOT16)
#endif

// Multiply-adds x 2 a second, all threads together, in 1e9; 0 where the tier has no such instruction.
// kind 0: fp32, 1: int16 into int32, 2: int8 into int32
double peak_rate(int kind, int threads, double rounds_of_all) {
    const ptrdiff_t rounds = (ptrdiff_t)rounds_of_all;
    double width = FLOATS;
    const double started = now();
    if (kind == 0) {
        const vector a = (vector){0} + 0.999f;
#pragma omp parallel num_threads(threads)
        spin_fp32(rounds, a, a);
#if defined(__AVX2__)
    } else if (kind == 1) {
        integers a;
        __builtin_memset(&a, 1, sizeof a);
        width *= 2;
#pragma omp parallel num_threads(threads)
        spin_int16(rounds, a, a);
#endif
#if defined(__AVX512VNNI__)
    } else if (kind == 2) {
        integers a;
        __builtin_memset(&a, 1, sizeof a);
        width *= 4;
#pragma omp parallel num_threads(threads)
        spin_int8(rounds, a, a);
#endif
    } else {
        return 0;
    }
    return 2e-9 * width * CHAINS * (double)rounds * threads / (now() - started);
}

// Bytes a second in 1e9 that the loops name: read y; x += y (no line is fetched only to be overwritten); x = y + z.
// kind 0: read, 1: update, 2: triad
double peak_bandwidth(int kind, int threads, float *x, const float *y, const float *z, ptrdiff_t n) {
    const double started = now();
    double sink = 0;
    if (kind == 0) {
#pragma omp parallel for num_threads(threads) reduction(+ : sink) schedule(static)
        for (ptrdiff_t block = 0; block < n / 1024; block++) {
            vector sum[4] = {{0}};
            const vector *v = (const vector *)(y + block * 1024);
            for (int i = 0; i < 1024 / FLOATS; i += 4)
                for (int j = 0; j < 4; j++) sum[j] += v[i + j];
            sink += sum[0][0] + sum[1][0] + sum[2][0] + sum[3][0];
        }
    } else if (kind == 1) {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (ptrdiff_t i = 0; i < n; i++) x[i] = 0.5f * x[i] + y[i];
    } else {
#pragma omp parallel for num_threads(threads) schedule(static)
        for (ptrdiff_t i = 0; i < n; i++) x[i] = 0.5f * z[i] + y[i];
    }
    static const double streams[] = {1, 3, 3};
    const double rate = 1e-9 * streams[kind] * 4 * (double)n / (now() - started);
    return sink == 1e300 ? 0 : rate;
}
