// Lane i of a vector holds counter i, so a group of 64 elements is 16 counters: element e takes word e / 16 of counter
// e % 16. Every tier draws the same words for the same element.
#include "simd/dropout.h"
#include "simd/vec.h"

static const uint32_t M0 = 0xD2511F53, M1 = 0xCD9E8D57, W0 = 0x9E3779B9, W1 = 0xBB67AE85;
static const uint32_t IOTA[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

typedef struct {
    vu high, low;
} product;

// the 64-bit products of every lane with m
INLINE product multiply(vu x, uint32_t m) {
#if VLEN == 16
    __m512i factor = _mm512_set1_epi32((int)m), even = _mm512_mul_epu32((__m512i)x, factor);
    __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)x, 32), factor);
    return (product){(vu)_mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd),
                     (vu)_mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32))};
#elif VLEN == 8
    __m256i factor = _mm256_set1_epi32((int)m), even = _mm256_mul_epu32((__m256i)x, factor);
    __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)x, 32), factor);
    return (product){(vu)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA),
                     (vu)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA)};
#else
    uint32_t high[VLEN], low[VLEN];
    for (int i = 0; i < VLEN; i++) {
        uint64_t wide = (uint64_t)x[i] * m;
        high[i] = (uint32_t)(wide >> 32);
        low[i] = (uint32_t)wide;
    }
    product out;
    memcpy(&out.high, high, sizeof high);
    memcpy(&out.low, low, sizeof low);
    return out;
#endif
}

INLINE void rounds(vu c[4], uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; round++, k0 += W0, k1 += W1) {
        product a = multiply(c[0], M0), b = multiply(c[2], M1);
        c[0] = b.high ^ c[1] ^ k0;
        c[1] = b.low;
        c[2] = a.high ^ c[3] ^ k1;
        c[3] = a.low;
    }
}

static void philox(uint32_t *words, const uint32_t *counter, const uint32_t *key) {
    vu c[4];
    for (int word = 0; word < 4; word++) c[word] = (vu){0} + counter[word];
    rounds(c, key[0], key[1]);
    for (int word = 0; word < 4; word++) words[word] = c[word][0];
}

// the 64 random words of the group whose first counter is `index` (a multiple of 16, so that lanes never carry)
static void draw(uint32_t *words, uint64_t index, uint64_t key, uint64_t stream) {
    for (int lane = 0; lane < 16; lane += VLEN) {
        vu lanes;
        memcpy(&lanes, IOTA + lane, sizeof lanes);
        vu c[4] = {lanes + (uint32_t)index, (vu){0} + (uint32_t)(index >> 32), (vu){0} + (uint32_t)stream,
                   (vu){0} + (uint32_t)(stream >> 32)};
        rounds(c, (uint32_t)key, (uint32_t)(key >> 32));
        for (int word = 0; word < 4; word++) memcpy(words + word * 16 + lane, &c[word], sizeof(vu));
    }
}

static void apply(float *y, const float *x, ptrdiff_t n, uint64_t first, uint32_t threshold, float scale, uint64_t key,
                  uint64_t stream, int accumulate) {
    uint32_t words[PHILOX_GROUP];
    for (ptrdiff_t start = 0; start < n; start += PHILOX_GROUP) {
        draw(words, (first + (uint64_t)start) / PHILOX_GROUP * 16, key, stream);
        ptrdiff_t i = start, end = n - start < PHILOX_GROUP ? n : start + PHILOX_GROUP;
        for (; i + VLEN <= end; i += VLEN) {
            vu word;
            memcpy(&word, words + (i - start), sizeof word);
            vf scaled = vselect((vi)(word >= threshold), vload(x + i) * scale, vset(0));
            vstore(y + i, accumulate ? vload(y + i) + scaled : scaled);
        }
        for (; i < end; i++) {
            float product = x[i] * scale, scaled = words[i - start] >= threshold ? product : 0;
            y[i] = accumulate ? y[i] + scaled : scaled;
        }
    }
}

const dropout_ops TIERED(dropout_table) = {.apply = apply, .philox = philox};
