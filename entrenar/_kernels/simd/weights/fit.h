// Scales (and minima) of sub-blocks with the least squared error: many candidates at once, one a lane, each improved by
// least squares for the integers that it gives.
#pragma once
#include "simd/weights/blocks.h"

enum { CANDIDATES = 16, ROUNDS = 3 };

// To the nearest integer, ties to even; |x| < 2^22
INLINE vf rounded(vf x) { return x + 0x1.8p23f - 0x1.8p23f; }
INLINE vf clamped(vf x, float least, float most) { return vmin(vmax(x, vset(least)), vset(most)); }

// What is searched: the first round varies the number of integers that the range is divided into, the later ones close
// in on the best so far.
INLINE float candidate_factor(int round, int candidate) {
    static const float STEP[ROUNDS] = {0.125f, 0.005f, 0.001f};
    return STEP[round] * (float)(candidate - CANDIDATES / 2);
}

// x ~ scale q - minimum
typedef struct affine_fit {
    float scale, minimum, error;
} affine_fit;

// Better `best` of y = x + shift, 0 <= y, n of them, with sums of y and y^2; q in 0 .. most, minimum >= 0
INLINE void try_affine(const float *y, int n, float most, float shift, float sum_y, float sum_yy, const float *inverse,
                       float offset, affine_fit *best) {
    float scales[CANDIDATES], minima[CANDIDATES], errors[CANDIDATES];
    for (int c = 0; c < CANDIDATES; c += VLEN) {
        const vf factor = vload(inverse + c), start = factor * -offset;
        vf q1 = {0}, q2 = {0}, yq = {0};
        for (int i = 0; i < n; i++) {
            const vf q = clamped(rounded(factor * y[i] + start), 0.0f, most);
            q1 += q, q2 += q * q, yq += q * y[i];
        }
        const vf determinant = (float)n * q2 - q1 * q1;
        vf scale = ((float)n * yq - sum_y * q1) / determinant, constant = (q2 * sum_y - q1 * yq) / determinant;
        const vi free = (constant <= vset(shift)) & (determinant > vset(0.0f));  // else the minimum is 0
        scale = vselect(free, scale, (yq - shift * q1) / q2);
        constant = vselect(free, constant, vset(shift));
        vstore(errors + c, sum_yy + scale * scale * q2 + (float)n * constant * constant +
                               2.0f * (scale * constant * q1 - scale * yq - constant * sum_y));
        vstore(scales + c, scale);
        vstore(minima + c, shift - constant);
    }
    for (int c = 0; c < CANDIDATES; c++)  // NaN, where all q are 0, is not less
        if (errors[c] < best->error) *best = (affine_fit){scales[c], minima[c], errors[c]};
}

INLINE affine_fit fit_affine(const float *x, int n, int most) {
    float y[GGML_BLOCK], low = 0.0f, high = x[0], sum_y = 0.0f, sum_yy = 0.0f;
    for (int i = 0; i < n; i++) low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
    const float range = high - low;
    affine_fit best = {range / (float)most, -low, INFINITY};
    if (!(best.scale > 1e-30f)) return (affine_fit){0.0f, -low, 0.0f};
    for (int i = 0; i < n; i++) y[i] = x[i] - low, sum_y += y[i], sum_yy += y[i] * y[i];
    for (int round = 0; round < ROUNDS; round++) {
        float inverse[CANDIDATES];
        for (int c = 0; c < CANDIDATES; c++) {
            const float factor = candidate_factor(round, c);
            inverse[c] = round ? (1.0f + factor) / best.scale : ((float)most + factor) / range;
        }
        try_affine(y, n, (float)most, -low, sum_y, sum_yy, inverse, round ? -low - best.minimum : 0.0f, &best);
    }
    return best;
}

// The scale of x ~ scale q, q in -zero .. zero - 1, n of them; 0 where all are that
INLINE float fit_signed(const float *x, int n, int zero) {
    float extreme = 0.0f, best = 0.0f, gain = 0.0f;
    for (int i = 0; i < n; i++) extreme = fabsf(x[i]) > fabsf(extreme) ? x[i] : extreme;
    if (fabsf(extreme) < 1e-30f) return 0.0f;
    for (int round = 0; round < ROUNDS; round++) {
        float inverse[CANDIDATES], scales[CANDIDATES], gains[CANDIDATES];
        for (int c = 0; c < CANDIDATES; c++) {
            const float factor = candidate_factor(round, c);
            inverse[c] = round ? (1.0f + factor) / best : -((float)zero + factor) / extreme;
        }
        for (int c = 0; c < CANDIDATES; c += VLEN) {
            const vf factor = vload(inverse + c);
            vf q2 = {0}, xq = {0};
            for (int i = 0; i < n; i++) {
                const vf q = clamped(rounded(factor * x[i]), (float)-zero, (float)(zero - 1));
                q2 += q * q, xq += q * x[i];
            }
            vstore(scales + c, xq / q2);
            vstore(gains + c, xq / q2 * xq);
        }
        for (int c = 0; c < CANDIDATES; c++)
            if (gains[c] > gain) best = scales[c], gain = gains[c];
    }
    return best;
}

// q = (x - start) / scale to the nearest in least .. most, n of them (whole vectors); 0 where the scale is that
INLINE void integers_of(int32_t *q, const float *x, int n, float start, float scale, float least, float most) {
    const float factor = reciprocal_or_zero(scale);
    for (int i = 0; i < n; i += VLEN) {
        const vf whole = rounded(clamped((vload(x + i) - start) * factor, least, most));
        vistore(q + i, __builtin_convertvector(whole, vi));
    }
}
// x as an fp16 holds it
INLINE float stored_half(uint8_t *bytes, float x) {
    store_half(bytes, x);
    return half_to_float(bytes);
}
