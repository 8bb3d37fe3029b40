// Tiles of VLEN x VLEN are transposed in registers.
#include "simd/shape.h"
#include "simd/vec.h"

#if VLEN == 4
static const vi LOW = {0, 4, 1, 5}, HIGH = {2, 6, 3, 7};
#elif VLEN == 8
static const vi LOW = {0, 8, 1, 9, 2, 10, 3, 11}, HIGH = {4, 12, 5, 13, 6, 14, 7, 15};
#else
static const vi LOW = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
static const vi HIGH = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
#endif

// One perfect shuffle of the VLEN^2 floats rotates the bits of their index; log2(VLEN) of them swap row and column.
INLINE void transpose_registers(vf *v) {
    vf w[VLEN];
    for (int width = VLEN; width > 1; width /= 2) {
        for (int i = 0; i < VLEN / 2; i++) {
            w[2 * i] = __builtin_shuffle(v[i], v[i + VLEN / 2], LOW);
            w[2 * i + 1] = __builtin_shuffle(v[i], v[i + VLEN / 2], HIGH);
        }
        for (int i = 0; i < VLEN; i++) v[i] = w[i];
    }
}

static void transpose(float *y, ptrdiff_t ldy, const float *x, ptrdiff_t ldx, ptrdiff_t rows, ptrdiff_t cols,
                      int accumulate) {
    ptrdiff_t r = 0;
    for (; r + VLEN <= rows; r += VLEN) {
        ptrdiff_t c = 0;
        for (; c + VLEN <= cols; c += VLEN) {
            vf v[VLEN];
            for (int i = 0; i < VLEN; i++) v[i] = vload(x + (c + i) * ldx + r);
            transpose_registers(v);
            for (int i = 0; i < VLEN; i++) {
                float *out = y + (r + i) * ldy + c;
                vstore(out, accumulate ? vload(out) + v[i] : v[i]);
            }
        }
        for (; c < cols; c++)
            for (int i = 0; i < VLEN; i++) {
                float *out = y + (r + i) * ldy + c, value = x[c * ldx + r + i];
                *out = accumulate ? *out + value : value;
            }
    }
    for (; r < rows; r++)
        for (ptrdiff_t c = 0; c < cols; c++) {
            float *out = y + r * ldy + c, value = x[c * ldx + r];
            *out = accumulate ? *out + value : value;
        }
}

const shape_ops TIERED(shape_table) = {.transpose = transpose};
