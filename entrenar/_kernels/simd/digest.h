// Checksums of the bits of an array: sums modulo 2^64, so that no order of adding them changes one.
#pragma once
#include <stddef.h>
#include <stdint.h>

// Of words w[i] of 32 bits: sum of w[i], sum of (i + 1) w[i], and sum of squares of words mixed with i.
typedef struct digest_sums {
    uint64_t plain;
    uint64_t weighted;
    uint64_t mixed;
} digest_sums;

typedef struct digest_ops {
    // Add the n words to `sums`; the first of them is word number `first` of the array
    void (*add)(digest_sums *sums, const uint32_t *words, ptrdiff_t n, uint64_t first);
} digest_ops;
