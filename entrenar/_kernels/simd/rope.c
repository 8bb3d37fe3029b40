// Rotary position embedding, half-split as in the LLaMA checkpoints of Hugging Face (see rope.h).
#include "simd/rope.h"
#include "simd/vec.h"

static void rotate(float *y, const float *x, const float *cos, const float *sin, float sign, ptrdiff_t heads,
                   ptrdiff_t half, ptrdiff_t rest, int accumulate) {
    for (ptrdiff_t h = 0; h < heads; h++, x += 2 * half + rest, y += 2 * half + rest) {
        ptrdiff_t i = 0;
        for (; i + VLEN <= half; i += VLEN) {
            vf a = vload(x + i), b = vload(x + half + i), c = vload(cos + i), s = vload(sin + i) * sign;
            vf low = a * c - b * s, high = b * c + a * s;
            vstore(y + i, accumulate ? vload(y + i) + low : low);
            vstore(y + half + i, accumulate ? vload(y + half + i) + high : high);
        }
        for (; i < half; i++) {
            float a = x[i], b = x[half + i], c = cos[i], s = sin[i] * sign;
            float low = a * c - b * s, high = b * c + a * s;
            y[i] = accumulate ? y[i] + low : low;
            y[half + i] = accumulate ? y[half + i] + high : high;
        }
        for (i = 2 * half; i < 2 * half + rest; i++) y[i] = accumulate ? y[i] + x[i] : x[i];
    }
}

const rope_ops TIERED(rope_table) = {.rotate = rotate};
