// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) and the mask made of it.
#pragma once
#include <stddef.h>
#include <stdint.h>

#define PHILOX_GROUP 64  // elements that 16 counters give: a mask is drawn in groups, the same ones on every tier

typedef struct dropout_ops {
    // y[i] = x[i] * scale where the random word of element first + i is >= threshold, else 0; adds where `accumulate`.
    // `first` is a multiple of PHILOX_GROUP.
    void (*apply)(float *y, const float *x, ptrdiff_t n, uint64_t first, uint32_t threshold, float scale, uint64_t key,
                  uint64_t stream, int accumulate);
    // the four words of one counter
    void (*philox)(uint32_t *words, const uint32_t *counter, const uint32_t *key);
} dropout_ops;
