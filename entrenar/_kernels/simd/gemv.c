// Products of a few rows in fp32: the weights stream through once, decoded in registers.
#include "simd/gemv.h"

enum { VECTORS = STEP / VLEN };

// The columns [p, p + STEP) of a row, whose step starts at `bytes`: the bits of dequantize_row
INLINE void step_values(int type, const matrix_view *s, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes,
                        vf values[VECTORS]) {
    vf scale, minimum = vset(-0.0f);  // adding -0 changes nothing
    if (type == WEIGHT_NF4) {
        scale = vset(nf4_absmax(s, row * (s->columns / NF4_BLOCK) + p / NF4_BLOCK));
        nf4_values(bytes, STEP, values);
    } else if (type == WEIGHT_Q4_0 || type == WEIGHT_Q4_1) {
        const int affine = type == WEIGHT_Q4_1, zero = affine ? 0 : 8;
        if (affine) halves_everywhere(bytes, &scale, &minimum);
        else scale = half_everywhere(bytes);
        bytes += affine ? 4 : 2;
        q4_values(bytes, 0, zero, values);
        q4_values(bytes, 4, zero, values + VECTORS / 2);
    } else if (type == WEIGHT_Q8_0) {
        scale = half_everywhere(bytes);
        int8_values(bytes + 2, VECTORS, values);
    } else if (type == WEIGHT_INT16) {
        scale = vset(s->absmax[row * (s->columns / INT16_BLOCK) + p / INT16_BLOCK]);
        int16_values((const int16_t *)bytes, VECTORS, values);
    } else if (type == WEIGHT_BF16) {
        float decoded[STEP];
        bf16_dequantize((const uint16_t *)bytes, STEP, decoded);
        for (int v = 0; v < VECTORS; v++) values[v] = vload(decoded + v * VLEN);
    } else {
        for (int v = 0; v < VECTORS; v++) values[v] = vload((const float *)bytes + v * VLEN);
    }
    if (type == WEIGHT_F32 || type == WEIGHT_BF16) return;
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) values[v] = values[v] * scale + minimum;
}

// y[r][first + i] (+)= x[r] . source[first + i] for r < rows, i < weights, both constants at every call
INLINE void block(int type, int rows, int weights, float *y, ptrdiff_t ldy, const float *x, ptrdiff_t ldx,
                  const matrix_view *s, ptrdiff_t first, ptrdiff_t k, int accumulate) {
    const ptrdiff_t unit = type == WEIGHT_F32 ? 4 : type == WEIGHT_BF16 ? 2 : 1, stride = s->row_stride * unit;
    const uint8_t *bytes = (const uint8_t *)s->data + first * stride, *ahead = bytes + weights * stride;
    vf total[4] = {{0}, {0}, {0}, {0}};
    float rest[4] = {0};
    ptrdiff_t p = 0;
    for (; p + STEP <= k; p += STEP, bytes += step_bytes(type), ahead += step_bytes(type)) {
#pragma GCC unroll 4
        for (int i = 0; i < weights; i++) {
            vf values[VECTORS];
            // the next rows: short rows end before the hardware's prefetcher has seen them
            __builtin_prefetch(ahead + i * stride);
            step_values(type, s, first + i, p, bytes + i * stride, values);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++) {
                const float *at = x + r * ldx + p;
                vf part = vload(at) * values[0];
#pragma GCC unroll 8
                for (int v = 1; v < VECTORS; v++) part += vload(at + v * VLEN) * values[v];
                total[r * weights + i] += part;
            }
        }
    }
    if ((type == WEIGHT_F32 || type == WEIGHT_BF16) && p < k) {  // codes come in whole blocks
#pragma GCC unroll 4
        for (int i = 0; i < weights; i++) {
            float decoded[STEP];
            dequantize_row(s, first + i, p, k - p, decoded);
            for (int r = 0; r < rows; r++) {
                const float *at = x + r * ldx + p;
                ptrdiff_t j = 0;
                for (; j + VLEN <= k - p; j += VLEN) total[r * weights + i] += vload(at + j) * vload(decoded + j);
                for (; j < k - p; j++) rest[r * weights + i] += at[j] * decoded[j];
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int i = 0; i < weights; i++) {
            const float sum = vsum(total[r * weights + i]) + rest[r * weights + i];
            float *to = y + r * ldy + first + i;
            *to = accumulate ? *to + sum : sum;
        }
}

INLINE void gemv(int type, float *y, ptrdiff_t ldy, const float *x, ptrdiff_t ldx, int rows, const matrix_view *s,
                 ptrdiff_t first, ptrdiff_t count, ptrdiff_t k, int accumulate) {
#define BLOCK(rows, weights) block(type, rows, weights, y, ldy, x, ldx, s, first, k, accumulate)
    EVERY_BLOCK(BLOCK)
}

void TIERED(gemv)(float *y, ptrdiff_t ldy, const float *x, ptrdiff_t ldx, int rows, const matrix_view *s,
                  ptrdiff_t first, ptrdiff_t count, ptrdiff_t k, int accumulate) {
#define TYPE(type)                                                                                                     \
    case type: gemv(type, y, ldy, x, ldx, rows, s, first, count, k, accumulate); break;
    switch (s->type) {
        TYPE(WEIGHT_F32)
        TYPE(WEIGHT_BF16)
        EVERY_QUANTIZED_TYPE(TYPE)
    default: __builtin_unreachable();
    }
}
