// Checksums of the bits of an array (digest.h). Integer loops that the compiler vectorizes.
#include "simd/digest.h"
#include "simd/vec.h"

static inline uint32_t mix(uint32_t word, uint32_t at) {
    uint32_t x = word ^ (at * 0x9E3779B1u);
    x = (x ^ (x >> 15)) * 0x2C1B3C6Du;
    return x ^ (x >> 12);
}

static void add(digest_sums *sums, const uint32_t *words, ptrdiff_t n, uint64_t first) {
    enum { RUN = 4096 };  // positions within a run fit into 32 bits, so that a product is one of 32 by 32 bits
    for (ptrdiff_t begin = 0; begin < n; begin += RUN) {
        uint32_t count = (uint32_t)(n - begin < RUN ? n - begin : RUN), at = (uint32_t)(first + begin);
        const uint32_t *run = words + begin;
        uint64_t plain = 0, weighted = 0, mixed = 0;
        for (uint32_t i = 0; i < count; i++) {
            uint64_t x = mix(run[i], at + i);
            plain += run[i];
            weighted += (uint64_t)run[i] * (i + 1);
            mixed += x * x;
        }
        sums->plain += plain;
        sums->weighted += weighted + plain * (first + begin);
        sums->mixed += mixed;
    }
}

const digest_ops TIERED(digest_table) = {.add = add};
