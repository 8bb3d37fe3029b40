// Transposition of a tile.
#pragma once
#include <stddef.h>

typedef struct shape_ops {
    // y[r * ldy + c] = x[c * ldx + r] for r < rows, c < cols; adds where `accumulate`
    void (*transpose)(float *y, ptrdiff_t ldy, const float *x, ptrdiff_t ldx, ptrdiff_t rows, ptrdiff_t cols,
                      int accumulate);
} shape_ops;
