// Micro-panels for few rows of A, whose B is a quantized weight: B's own integers and scales are moved to the panel as
// they are, which costs a third of dequantizing them and quantizing them again (gemm_integer.c), and loses nothing.
//
//   |A| <= 16383, |B| <= 4095: the 32 products of a step stay below 2^31
//
// A step of GEMV_STEP columns of a micro-panel is a header and rows of 32-bit words of two 16-bit values:
// panel[row][word]. B's header has the scales, then the minima, of the step or of each half of it; A's has the scale,
// then the sum of the values, or of each half of them.
#include "simd/integer_panels.h"
#include "simd/transpose.h"
#include "simd/weights/gemv.h"

#if HAS_GEMV_INTEGER
enum { X_LIMIT = 16383, WORDS = STEP / 2, RUN = 256 };

// `parts` of a step have scales of their own: 1 or 2, a constant at every call
INLINE int header(int parts) { return 2 * parts; }

// ---------------------------------------------------------------- packing
INLINE void quantize_step(float *out, const float *panel, int width, int parts) {
    for (int i = 0; i < width; i += VLEN) {
        vf inverse, scale = block_scale(panel + i, width, STEP, X_LIMIT, &inverse);
        vi total[2] = {{0}, {0}};
        float *to = out + header(parts) * width + i;
        for (int p = 0; p < STEP; p += 2, to += width) {
            const vi low = round_to_int(vload(panel + p * width + i) * inverse);
            const vi high = round_to_int(vload(panel + (p + 1) * width + i) * inverse);
            total[p * parts / STEP] += low + high;
            vistore((int32_t *)to, (low & 0xffff) | high << 16);
        }
        vstore(out + i, scale);
        for (int part = 0; part < parts; part++) vstore(out + (1 + part) * width + i, to_float(total[part]) * scale);
    }
}
INLINE void pack_a(float *packed, int width, const matrix_view *matrix, int k_major, ptrdiff_t first, int count,
                   ptrdiff_t p0, ptrdiff_t kc, int parts) {
    float panel[STEP * PACKMR] __attribute__((aligned(64)));
    for (ptrdiff_t p = 0; p < kc; p += STEP, packed += (header(parts) + WORDS) * width) {
        TIERED(gemm_pack)(panel, width, matrix, k_major, first, count, p0 + p, STEP);
        quantize_step(packed, panel, width, parts);
    }
}

// VLEN rows of B
typedef struct rows {
    int16_t values[VLEN][RUN] __attribute__((aligned(64)));
    float scales[VLEN][2 * RUN / STEP], minima[VLEN][2 * RUN / STEP];
} rows;

INLINE void move_step(float *to, const rows *r, int step, int parts) {
    for (int part = 0; part < parts; part++)
        for (int i = 0; i < VLEN; i++) {
            to[part * NR + i] = r->scales[i][step * parts + part];
            to[(parts + part) * NR + i] = r->minima[i][step * parts + part];
        }
    to += header(parts) * NR;
    for (int word = 0; word < WORDS; word += VLEN, to += VLEN * NR) {
        vf square[VLEN];
#pragma GCC unroll 16
        for (int i = 0; i < VLEN; i++) square[i] = vload((const float *)(r->values[i] + step * STEP) + word);
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < VLEN; i++) vstore(to + i * NR, square[i]);
    }
}
INLINE void pack_b(float *packed, const matrix_view *matrix, ptrdiff_t first, int count, ptrdiff_t p0, ptrdiff_t kc,
                   int parts) {
    const weight_kernels *kernels = TIERED(weight_types)[matrix->type].kernels;
    const ptrdiff_t words = (header(parts) + WORDS) * NR;
    rows r;
    for (int i0 = 0; i0 < NR; i0 += VLEN) {
        if (count - i0 < VLEN) memset(&r, 0, sizeof r);
        for (ptrdiff_t p = 0, n; p < kc; p += n) {
            n = RUN - (p0 + p) % RUN < kc - p ? RUN - (p0 + p) % RUN : kc - p;
            for (int i = 0; i < VLEN && i0 + i < count; i++)
                kernels->integers(matrix, stored_row(matrix, first + i0 + i), p0 + p, n, r.values[i], r.scales[i],
                                  r.minima[i]);
            for (int step = 0; step < n / STEP; step++)
                move_step(packed + (p / STEP + step) * words + i0, &r, step, parts);
        }
    }
}

// ---------------------------------------------------------------- the micro-kernel
// `count` rows of C, parts: constants at every call
INLINE void multiply(float *c, ptrdiff_t ldc, const float *a, const float *b, ptrdiff_t kc, int m, int n,
                     int accumulate, int count, int parts) {
    float total[MR * NR] __attribute__((aligned(64)));
#pragma GCC unroll 24
    for (int i = 0; i < count * NR; i += VLEN) vstore(total + i, vset(0.0f));
    prefetch_tile(c, ldc, m);
    for (ptrdiff_t p = 0; p < kc; p += STEP) {
        const float *a_header = a, *b_header = b;
        a += header(parts) * PACKMR;
        b += header(parts) * NR;
#pragma GCC unroll 2
        for (int part = 0; part < parts; part++) {
            vi sum[MR][NV];
#pragma GCC unroll 12
            for (int i = 0; i < count; i++)
#pragma GCC unroll 2
                for (int j = 0; j < NV; j++) sum[i][j] = (vi){0};
            for (int g = 0; g < WORDS / parts; g++, a += PACKMR, b += NR) {
                vi row[NV];
#pragma GCC unroll 2
                for (int j = 0; j < NV; j++) row[j] = viload((const int32_t *)b + j * VLEN);
#pragma GCC unroll 12
                for (int i = 0; i < count; i++) {
                    const vi x = viset(((const int32_t *)a)[i]);
#pragma GCC unroll 2
                    for (int j = 0; j < NV; j++) sum[i][j] = multiply_add16(sum[i][j], x, row[j]);
                }
            }
            __asm__ volatile("" ::: "memory");  // keeps the loads below out of the loop, as in gemm_integer.c
            const float *a_sum = a_header + (1 + part) * PACKMR;
            const float *b_scale = b_header + part * NR, *b_minimum = b_header + (parts + part) * NR;
#pragma GCC unroll 12
            for (int i = 0; i < count; i++)
#pragma GCC unroll 2
                for (int j = 0; j < NV; j++) {
                    float *to = total + i * NR + j * VLEN;
                    const vf scale = a_header[i] * vload(b_scale + j * VLEN);
                    vstore(to, vload(to) + to_float(sum[i][j]) * scale + a_sum[i] * vload(b_minimum + j * VLEN));
                }
        }
    }
    store_tile(c, ldc, total, m, n, accumulate);
}
INLINE void multiply_rows(float *c, ptrdiff_t ldc, const float *a, const float *b, ptrdiff_t kc, int m, int n,
                          int accumulate, int parts) {
    switch ((3 * m + MR - 1) / MR) {
    case 1: multiply(c, ldc, a, b, kc, m, n, accumulate, MR / 3, parts); break;
    case 2: multiply(c, ldc, a, b, kc, m, n, accumulate, MR / 3 * 2, parts); break;
    default: multiply(c, ldc, a, b, kc, m, n, accumulate, MR, parts);
    }
}

static void pack_a_steps(float *packed, int width, const matrix_view *matrix, int k_major, ptrdiff_t first, int count,
                         ptrdiff_t p0, ptrdiff_t kc) {
    pack_a(packed, width, matrix, k_major, first, count, p0, kc, 1);
}
static void pack_b_steps(float *packed, int width, const matrix_view *matrix, int k_major, ptrdiff_t first, int count,
                         ptrdiff_t p0, ptrdiff_t kc) {
    (void)width, (void)k_major;  // NR, 1
    pack_b(packed, matrix, first, count, p0, kc, 1);
}
static void micro_kernel_steps(float *c, ptrdiff_t ldc, const float *a, const float *b, ptrdiff_t kc, int m, int n,
                               int accumulate) {
    multiply_rows(c, ldc, a, b, kc, m, n, accumulate, 1);
}
const gemm_format TIERED(gemm_steps) = {
    .mr = MR,
    .nr = NR,
    .packmr = PACKMR,
    .block = STEP,
    .block_words = 2 * 1 + WORDS,
    .pack_a = pack_a_steps,
    .pack_b = pack_b_steps,
    .micro_kernel = micro_kernel_steps,
};

static void pack_a_half_steps(float *packed, int width, const matrix_view *matrix, int k_major, ptrdiff_t first,
                              int count, ptrdiff_t p0, ptrdiff_t kc) {
    pack_a(packed, width, matrix, k_major, first, count, p0, kc, 2);
}
static void pack_b_half_steps(float *packed, int width, const matrix_view *matrix, int k_major, ptrdiff_t first,
                              int count, ptrdiff_t p0, ptrdiff_t kc) {
    (void)width, (void)k_major;  // NR, 1
    pack_b(packed, matrix, first, count, p0, kc, 2);
}
static void micro_kernel_half_steps(float *c, ptrdiff_t ldc, const float *a, const float *b, ptrdiff_t kc, int m, int n,
                                    int accumulate) {
    multiply_rows(c, ldc, a, b, kc, m, n, accumulate, 2);
}
const gemm_format TIERED(gemm_half_steps) = {
    .mr = MR,
    .nr = NR,
    .packmr = PACKMR,
    .block = STEP,
    .block_words = 2 * 2 + WORDS,
    .pack_a = pack_a_half_steps,
    .pack_b = pack_b_half_steps,
    .micro_kernel = micro_kernel_half_steps,
};
#else
const gemm_format TIERED(gemm_steps) = {0}, TIERED(gemm_half_steps) = {0};
#endif
