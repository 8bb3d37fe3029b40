// The bodies of gemv, of which each weight type makes its own: y (m, n) = x (m, k) W (n, k)^T with W dequantized in
// registers. What `steps` says is constant at every call, and its function is inlined.
#pragma once
#include "simd/gemv.h"
#include "simd/vec.h"
#include "simd/weights/blocks.h"

enum { STEP = GEMV_STEP };  // no block of a type ends within a step of columns
_Static_assert((int)GGML_BLOCK == STEP, "a block is a number of steps");
_Static_assert(GEMV_PASS == 8, "cases are written out for so many rows");
enum { AHEAD = 4096 };  // bytes: W is one stream, whose next page the hardware does not fetch by itself
// The same of a block of 256 columns, into L2: what is multiplied now has the miss buffers of L1 to itself
enum { BLOCK_AHEAD = 8192 };
INLINE void prefetch_block(const uint8_t *block, int bytes) {
    for (int line = 0; line < bytes; line += 64) __builtin_prefetch(block + line + BLOCK_AHEAD, 0, 2);
}

// ---------------------------------------------------------------- fp32
enum { STEP_VECTORS = STEP / VLEN };

// values = the columns [p, p + STEP) of a row of w, in the block at `bytes`: the bits of dequantize_row
typedef void step_function(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes,
                           vf values[STEP_VECTORS]);

typedef struct steps {
    step_function *read;
    int columns, bytes;  // of a block: whole steps
    int value_bytes;  // of a value that is not quantized: row_stride counts values, a row may end within a step; else 0
} steps;

// y[r][row] (+)= x[r] . w[row] for r < rows, a constant at every call
INLINE void gemv_row(const gemv_args *g, ptrdiff_t row, steps step, int rows) {
    const matrix_view *w = g->w;
    const float *x = g->x;
    const ptrdiff_t ldx = g->ldx, k = g->k, stride = w->row_stride * (step.value_bytes ? step.value_bytes : 1);
    const uint8_t *bytes = (const uint8_t *)w->data + row * stride;
    vf total[GEMV_PASS] = {{0}};
    float rest[GEMV_PASS] = {0};
    ptrdiff_t p = 0;
    for (; p + STEP <= k; p += STEP) {
        const uint8_t *block = bytes + (size_t)p / (size_t)step.columns * (size_t)step.bytes;
        vf values[STEP_VECTORS];
        __builtin_prefetch(bytes + (size_t)p * (size_t)step.bytes / (size_t)step.columns + AHEAD);
        step.read(w, row, p, block, values);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const float *at = x + r * ldx + p;
            vf part = vload(at) * values[0];
#pragma GCC unroll 8
            for (int v = 1; v < STEP_VECTORS; v++) part += vload(at + v * VLEN) * values[v];
            total[r] += part;
        }
    }
    if (step.value_bytes && p < k) {
        float values[STEP];
        dequantize_row(w, row, p, k - p, values);
        for (int r = 0; r < rows; r++) {
            const float *at = x + r * ldx + p;
            ptrdiff_t j = 0;
            for (; j + VLEN <= k - p; j += VLEN) total[r] += vload(at + j) * vload(values + j);
            for (; j < k - p; j++) rest[r] += at[j] * values[j];
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        const float sum = vsum(total[r]) + rest[r];
        float *to = g->y + r * g->ldy + row;
        *to = g->accumulate ? *to + sum : sum;
    }
}

// weight_kernels.gemv
INLINE void gemv_by(const gemv_args *g, steps step) {
    for (ptrdiff_t row = g->first; row < g->first + g->count; row++) {
        switch (g->m) {
        case 1: gemv_row(g, row, step, 1); break;
        case 2: gemv_row(g, row, step, 2); break;
        case 3: gemv_row(g, row, step, 3); break;
        case 4: gemv_row(g, row, step, 4); break;
        case 6: gemv_row(g, row, step, 6); break;
        default: gemv_row(g, row, step, 8);
        }
    }
}

// ---------------------------------------------------------------- 16-bit integers
// x in integers with a scale for each block of 256 columns, W by its quantized values. The sum of a step is exact; it
// is scaled and added in fp32.
//
//   |x| <= 32767, |W| <= 4095: the four products of a step that a 32-bit lane adds stay below 2^31
#if VLEN >= 8  // without, dequantizing costs more than integers save
#define HAS_GEMV_INTEGER 1
enum { INTEGER_VECTORS = STEP / (2 * VLEN), GEMV_X_LIMIT = 32767 };

#if VLEN == 16
typedef __m512i vh;  // 2 VLEN int16
INLINE vh vhload(const void *p) { return _mm512_loadu_si512(p); }
INLINE void vhstore(void *p, vh v) { _mm512_storeu_si512(p, v); }
INLINE vh vhbytes(const uint8_t *p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)p)); }
INLINE vi multiply_add(vh a, vh b) { return (vi)_mm512_madd_epi16(a, b); }
// The columns 0..15 and 16..31 of a step
INLINE void join(__m256i low, __m256i high, vh *out) {
    out[0] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}
#else
typedef __m256i vh;
INLINE vh vhload(const void *p) { return _mm256_loadu_si256(p); }
INLINE void vhstore(void *p, vh v) { _mm256_storeu_si256(p, v); }
INLINE vh vhbytes(const uint8_t *p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)p)); }
INLINE vi multiply_add(vh a, vh b) { return (vi)_mm256_madd_epi16(a, b); }
INLINE void join(__m256i low, __m256i high, vh *out) { out[0] = low, out[1] = high; }
#endif

// What 16-bit integers of unsigned bytes are made of, for vector v of a step
INLINE vh load_bytes(const uint8_t *bytes, int v) {
#if VLEN == 16
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const void *)(bytes + 32 * v)));
#else
    return _mm256_cvtepu8_epi16(_mm_loadu_si128((const void *)(bytes + 16 * v)));
#endif
}
// The low or the high nibbles
INLINE vh nibbles_of(vh bytes, int high) {
#if VLEN == 16
    return high ? _mm512_srli_epi16(bytes, 4) : _mm512_and_si512(bytes, _mm512_set1_epi16(15));
#else
    return high ? _mm256_srli_epi16(bytes, 4) : _mm256_and_si256(bytes, _mm256_set1_epi16(15));
#endif
}
// low | (bytes >> shift & mask); a negative shift is to the left
INLINE vh with_bits(vh low, vh bytes, int shift, int mask) {
#if VLEN == 16
    const vh moved = shift < 0 ? _mm512_slli_epi16(bytes, (unsigned)-shift) : _mm512_srli_epi16(bytes, (unsigned)shift);
    return _mm512_ternarylogic_epi64(low, moved, _mm512_set1_epi16((short)mask), 0xf8);
#else
    const vh moved = shift < 0 ? _mm256_slli_epi16(bytes, -shift) : _mm256_srli_epi16(bytes, shift);
    return _mm256_or_si256(low, _mm256_and_si256(moved, _mm256_set1_epi16((short)mask)));
#endif
}
INLINE vh minus(vh values, int zero) {
#if VLEN == 16
    return _mm512_sub_epi16(values, _mm512_set1_epi16((short)zero));
#else
    return _mm256_sub_epi16(values, _mm256_set1_epi16((short)zero));
#endif
}

typedef float v8 __attribute__((vector_size(32)));
typedef float v8_unaligned __attribute__((vector_size(32), aligned(4), may_alias));
INLINE v8 v8load(const float *p) { return *(const v8_unaligned *)p; }
// The first n, and zeros
INLINE v8 v8load_n(const float *p, int n) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return (v8)_mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lanes));
}
INLINE vf widened(v8 x) {
#if VLEN == 16
    return (vf)_mm512_zextps256_ps512((__m256)x);
#else
    return (vf)x;
#endif
}

// A row of x in gemv_words(k) words: values, the scale of each step, the sum of each step's values, scaled, and of
// each half of a step
typedef struct quantized_row {
    int16_t *values;
    float *scales, *sums, *half_sums;
} quantized_row;
INLINE quantized_row quantized_row_of(const float *words, ptrdiff_t k) {
    float *scales = (float *)words + k / 2;
    return (quantized_row){(int16_t *)words, scales, scales + k / STEP, scales + 2 * (k / STEP)};
}

#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)
#define HAS_PLANES 1
// value = (256 high + low) scale, with a scale for a block of 256 columns
enum { PLANES_LIMIT = 127 * 256, EIGHTS_ZERO = 32 };
typedef struct plane_row {
    int8_t *high, *low;
    int32_t
        *biases;  // GEMV_EIGHTS, for each half block: what -EIGHTS_ZERO times the low, then the high bytes sums up to
    float *sums;  // GEMV_SIXTEENS: of each step
    float *scales;
} plane_row;
INLINE plane_row plane_row_of(const float *words, ptrdiff_t k, int form) {
    float *planes = (float *)words + k / 2 + 4 * (k / STEP), *biases = planes + k, *sums = biases + k / 4;
    int8_t *high = (int8_t *)(form == GEMV_EIGHTS ? planes + k / 2 : planes);
    return (plane_row){high, high + k, (int32_t *)biases, sums, sums + k / STEP};
}
#endif

// values = the columns [p, p + STEP) of a row of w, which lie at `bytes`, as integers: value * scale, or + minimum too
typedef void integer_step_function(const matrix_view *w, ptrdiff_t row, ptrdiff_t p, const uint8_t *bytes,
                                   vh values[INTEGER_VECTORS], vf *scale, vf *minimum);

typedef struct integer_steps {
    integer_step_function *read;
    int bytes;        // of a step
    int has_minimum;  // else `read` leaves it alone
} integer_steps;

// y[r][first + i] = x[r] . w[first + i] for r < rows, i < weights, both constants at every call
INLINE void gemv_integer_rows(const gemv_args *g, ptrdiff_t first, integer_steps step, int rows, int weights) {
    const matrix_view *w = g->w;
    const ptrdiff_t k = g->k, words = gemv_words(k), stride = w->row_stride;
    const uint8_t *bytes = (const uint8_t *)w->data + first * stride, *ahead = bytes;
    ahead += weights > 1 ? weights * stride : AHEAD;
    vf total[GEMV_PASS] = {{0}};
    v8 minima[GEMV_PASS] = {{0}};
    for (ptrdiff_t block = 0; block < k; block += K_BLOCK) {
        const int steps = k - block < K_BLOCK ? (int)(k - block) / STEP : K_BLOCK / STEP;
        vf sums[GEMV_PASS] = {{0}};
        float minimum_of[4][K_BLOCK / STEP] __attribute__((aligned(32))) = {{0}};
        for (int s = 0; s < steps; s++, bytes += step.bytes, ahead += step.bytes) {
            const ptrdiff_t p = block + s * STEP;
#pragma GCC unroll 4
            for (int i = 0; i < weights; i++) {
                vh values[INTEGER_VECTORS];
                vf scale, minimum;
                __builtin_prefetch(ahead + i * stride);
                step.read(w, first + i, p, bytes + i * stride, values, &scale, &minimum);
                if (step.has_minimum) minimum_of[i][s] = minimum[0];
#pragma GCC unroll 8
                for (int r = 0; r < rows; r++) {
                    const int16_t *x = quantized_row_of(g->x + r * words, k).values + p;
                    vi sum = multiply_add(values[0], vhload(x));
#pragma GCC unroll 2
                    for (int v = 1; v < INTEGER_VECTORS; v++) sum += multiply_add(values[v], vhload(x + v * 2 * VLEN));
                    sums[r * weights + i] += __builtin_convertvector(sum, vf) * scale;
                }
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const quantized_row x = quantized_row_of(g->x + r * words, k);
#pragma GCC unroll 4
            for (int i = 0; i < weights; i++) {
                total[r * weights + i] += sums[r * weights + i] * x.scales[block / STEP];
                if (step.has_minimum)
                    minima[r * weights + i] += v8load(minimum_of[i]) * v8load_n(x.sums + block / STEP, steps);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int i = 0; i < weights; i++)
            g->y[r * g->ldy + first + i] = vsum(total[r * weights + i] + widened(minima[r * weights + i]));
}

// weight_kernels.gemv_integer. The two sums of a step with a minimum wait for each other: four rows of w are taken at
// a time. One row is one stream, which is read faster from memory.
INLINE void gemv_integer_by(const gemv_args *g, integer_steps step) {
    const ptrdiff_t end = g->first + g->count;
    ptrdiff_t i = g->first;
    if (g->m == 1 && step.has_minimum)
        for (; i + 4 <= end; i += 4) gemv_integer_rows(g, i, step, 1, 4);
    for (; i < end; i++) {
        switch (g->m) {
        case 1: gemv_integer_rows(g, i, step, 1, 1); break;
        case 2: gemv_integer_rows(g, i, step, 2, 1); break;
        case 3: gemv_integer_rows(g, i, step, 3, 1); break;
        case 4: gemv_integer_rows(g, i, step, 4, 1); break;
        case 6: gemv_integer_rows(g, i, step, 6, 1); break;
        default: gemv_integer_rows(g, i, step, 8, 1);
        }
    }
}

// weight_kernels.integers
INLINE void integers_by(const matrix_view *w, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, integer_steps step,
                        int16_t *to, float *scales, float *minima) {
    const uint8_t *bytes = (const uint8_t *)w->data + row * w->row_stride + k0 / STEP * step.bytes;
    for (ptrdiff_t p = k0; p < k0 + count; p += STEP, bytes += step.bytes, to += STEP) {
        vh values[INTEGER_VECTORS];
        vf scale, minimum = {0};
        step.read(w, row, p, bytes, values, &scale, &minimum);
        for (int v = 0; v < INTEGER_VECTORS; v++) vhstore(to + v * 2 * VLEN, values[v]);
        *scales++ = scale[0];
        *minima++ = minimum[0];
    }
}

// ---------------------------------------------------------------- 16-bit integers, blocks of 256 columns
// Sub-blocks of 32 or 16 columns have scales (and minima) of their own, which are made for the whole block at once.
enum { SUBS = 2 };  // vectors of 8 scales in a block, at most

#if HAS_PLANES
// The block as unsigned bytes q with signed scales of 8 bits: value = d (scale q) + minimum
typedef struct byte_blocks {
    // the scales in the low 16 bytes, their signs (0 or -1) in the next; the minima of sub-blocks, 0 beyond the last
    __m512i (*scales)(const uint8_t *block, float *d, vf *minima);
    void (*read)(const uint8_t *block, __m512i q[4]);  // in the order of `form`
    int form;  // GEMV_SIXTEENS, or GEMV_EIGHTS, where EIGHTS_ZERO is to be subtracted from q
} byte_blocks;
#endif

typedef struct integer_blocks {
    // scales (and minima) of the sub-blocks: value * scale, or + minimum too
    void (*scales)(const uint8_t *block, v8 scales[SUBS], v8 minima[SUBS]);
    // values = columns [STEP step, STEP step + STEP) of a block as integers; `step` is a constant at every call
    void (*read)(const uint8_t *block, int step, vh values[INTEGER_VECTORS]);
    int sub_block;    // columns: 16 or 32
    int bytes;        // of a block
    int has_minimum;  // else `scales` leaves the minima alone
#if HAS_PLANES
    byte_blocks planes;  // the same for products of bytes; all 0 where the type has none
#endif
} integer_blocks;

// total += the products of a step, scaled by those of its one or two sub-blocks
INLINE void add_step(vf *total, int sub_block, int step, const vh *values, const int16_t *x, const float *scales) {
#if VLEN == 16
    const vf products = __builtin_convertvector(multiply_add(values[0], vhload(x)), vf);
    const __m512 first = _mm512_set1_ps(scales[STEP / sub_block * step]);
    if (sub_block == STEP) *total += products * (vf)first;
    else *total += products * (vf)_mm512_mask_broadcastss_ps(first, 0xff00, _mm_load_ss(scales + 2 * step + 1));
#else
    const vi low = multiply_add(values[0], vhload(x)), high = multiply_add(values[1], vhload(x + 16));
    if (sub_block == STEP) {
        *total += __builtin_convertvector(low + high, vf) * scales[step];
    } else {
        *total += __builtin_convertvector(low, vf) * scales[2 * step];
        *total += __builtin_convertvector(high, vf) * scales[2 * step + 1];
    }
#endif
}

// Each of 8 steps' scales for the sub-blocks, whose scales are `scales`
INLINE void scale_sub_blocks(const float *x_scales, int sub_block, const v8 *scales, float *out) {
    const __m256 x = _mm256_loadu_ps(x_scales);
    if (sub_block == STEP) {
        _mm256_store_ps(out, (__m256)(scales[0] * (v8)x));
    } else {
        const __m256i low = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3), high = _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7);
        _mm256_store_ps(out, (__m256)(scales[0] * (v8)_mm256_permutevar8x32_ps(x, low)));
        _mm256_store_ps(out + 8, (__m256)(scales[1] * (v8)_mm256_permutevar8x32_ps(x, high)));
    }
}

// y[r][row] = x[r] . w[row] for r < rows, a constant at every call
INLINE void gemv_integer_blocks_row(const gemv_args *g, ptrdiff_t row, integer_blocks f, int rows) {
    const ptrdiff_t k = g->k, words = gemv_words(k);
    const uint8_t *block = (const uint8_t *)g->w->data + row * g->w->row_stride;
    vf total[4] = {{0}, {0}, {0}, {0}};
    v8 minima[4] = {{0}, {0}, {0}, {0}};
    for (ptrdiff_t p = 0; p < k; p += K_BLOCK, block += f.bytes) {
        v8 scale[SUBS], minimum[SUBS];
        float scales[4][8 * SUBS] __attribute__((aligned(32)));
        prefetch_block(block, f.bytes);
        f.scales(block, scale, minimum);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const quantized_row x = quantized_row_of(g->x + r * words, k);
            scale_sub_blocks(x.scales + p / STEP, f.sub_block, scale, scales[r]);
            if (f.has_minimum && f.sub_block == STEP) {
                minima[r] += minimum[0] * v8load(x.sums + p / STEP);
            } else if (f.has_minimum) {
                minima[r] += minimum[0] * v8load(x.half_sums + p / 16);
                minima[r] += minimum[1] * v8load(x.half_sums + p / 16 + 8);
            }
        }
#pragma GCC unroll 8
        for (int step = 0; step < K_BLOCK / STEP; step++) {
            vh values[INTEGER_VECTORS];
            f.read(block, step, values);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                add_step(&total[r], f.sub_block, step, values,
                         quantized_row_of(g->x + r * words, k).values + p + step * STEP, scales[r]);
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) { g->y[r * g->ldy + row] = vsum(total[r] + widened(minima[r])); }
}

#if HAS_PLANES
// Which bytes of the scales belong to the sums of vectors 2 pair and 2 pair + 1, packed to 16 bits
INLINE __m512i scale_places(int form, int pair) {
    uint8_t places[64] __attribute__((aligned(64)));
    for (int lane = 0; lane < 4; lane++)
        for (int i = 0; i < 8; i++) {
            const int sub = form == GEMV_EIGHTS ? 4 * pair + lane + i / 2 % 2 * 8 : 2 * lane + pair;
            places[16 * lane + 2 * i] = (uint8_t)sub;
            places[16 * lane + 2 * i + 1] = (uint8_t)(16 + sub);
        }
    return _mm512_load_si512(places);
}

// The sums of the lanes of each of 16 vectors, which are overwritten
INLINE vf vsums(__m512 v[16]) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) v[i] = _mm512_unpacklo_ps(v[i], v[i + 8]) + _mm512_unpackhi_ps(v[i], v[i + 8]);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) v[i] = _mm512_unpacklo_ps(v[i], v[i + 4]) + _mm512_unpackhi_ps(v[i], v[i + 4]);
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2)
        v[i] = _mm512_shuffle_f32x4(v[i], v[i + 1], 0x44) + _mm512_shuffle_f32x4(v[i], v[i + 1], 0xee);
    const __m512 sums = _mm512_shuffle_f32x4(v[0], v[2], 0x88) + _mm512_shuffle_f32x4(v[0], v[2], 0xdd);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return (vf)_mm512_permutexvar_ps(order, sums);
}

// The scaled sums of a block, where x's column p is at `column`. Two vectors share scales lane by lane: their eight
// products of bytes sum up to less than 2^15 (or to 2^15, which is packed as one less), and four such sums times scales
// of 8 bits to less than 2^25. The low two lanes of each 128 bits are of low bytes, the high two of high ones.
INLINE __m512i planes_block(plane_row x, ptrdiff_t column, const __m512i q[4], __m512i scales, int form) {
    __m512i sum = _mm512_setzero_si512();
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; pair++, column += 128) {
        __m512i low = _mm512_setzero_si512(), high = low;
        if (form == GEMV_EIGHTS) low = vhload(x.biases + column / 4), high = vhload(x.biases + column / 4 + 16);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            low = _mm512_dpbusd_epi32(low, q[2 * pair + i], vhload(x.low + column + 64 * i));
            high = _mm512_dpbusd_epi32(high, q[2 * pair + i], vhload(x.high + column + 64 * i));
        }
        const __m512i scale = _mm512_permutexvar_epi8(scale_places(form, pair), scales);
        sum = _mm512_dpwssd_epi32(sum, _mm512_packs_epi32(low, high), scale);
    }
    return sum;
}

// total[r] = what x[r] . w[row] sums, r < rows, a constant at every call
INLINE void gemv_planes_row(const float *words_of_x, ptrdiff_t k, const uint8_t *block, integer_blocks f, int rows,
                            vf total[4]) {
    const ptrdiff_t words = gemv_words(k);
    vf minima[4] = {{0}, {0}, {0}, {0}};
    total[0] = total[1] = total[2] = total[3] = (vf){0};
    for (ptrdiff_t p = 0; p < k; p += K_BLOCK, block += f.bytes) {
        vf minimum;
        float d;
        __m512i q[4];
        prefetch_block(block, f.bytes);
        const __m512i scales = f.planes.scales(block, &d, &minimum);
        f.planes.read(block, q);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            const plane_row x = plane_row_of(words_of_x + r * words, k, f.planes.form);
            const __m512i sum = planes_block(x, p, q, scales, f.planes.form);
            total[r] += (vf)_mm512_cvtepi32_ps(sum) * (d * x.scales[p / K_BLOCK]);
            if (f.has_minimum) minima[r] += minimum * (vf)_mm512_zextps256_ps512((__m256)v8load(x.sums + p / STEP));
        }
    }
    const vf weights = (vf)_mm512_broadcast_f32x4(_mm_setr_ps(1.0f, 1.0f, 256.0f, 256.0f));
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) total[r] = total[r] * weights + minima[r];
}

// y[r][first + i] = x[r] . w[first + i] for r < rows, a constant at every call
INLINE void gemv_planes_rows(const gemv_args *g, integer_blocks f, int rows) {
    const uint8_t *data = (const uint8_t *)g->w->data + g->first * g->w->row_stride;
    for (ptrdiff_t i = 0; i < g->count; i += 16) {
        __m512 totals[4][16];
        const int count = g->count - i < 16 ? (int)(g->count - i) : 16;
        for (int row = 0; row < count; row++, data += g->w->row_stride) {
            vf total[4];
            gemv_planes_row(g->x, g->k, data, f, rows, total);
            for (int r = 0; r < rows; r++) totals[r][row] = (__m512)total[r];
        }
        const __mmask16 written = (__mmask16)((1u << count) - 1);
        for (int r = 0; r < rows; r++) {
            for (int row = count; row < 16; row++) totals[r][row] = _mm512_setzero_ps();
            _mm512_mask_storeu_ps(g->y + r * g->ldy + g->first + i, written, (__m512)vsums(totals[r]));
        }
    }
}
#endif

INLINE void gemv_block_rows(const gemv_args *g, integer_blocks f, int rows) {
#if HAS_PLANES
    if (f.planes.read) {
        gemv_planes_rows(g, f, rows);
        return;
    }
#endif
    for (ptrdiff_t row = g->first; row < g->first + g->count; row++) gemv_integer_blocks_row(g, row, f, rows);
}

// weight_kernels.gemv_integer of types with blocks of 256 columns
INLINE void gemv_integer_blocks(const gemv_args *g, integer_blocks f) {
    gemv_args part = *g;
    for (int left = g->m; left > 0; left -= 4, part.x += 4 * g->ldx, part.y += 4 * g->ldy) {
        part.m = left < 4 ? left : 4;
        switch (part.m) {
        case 1: gemv_block_rows(&part, f, 1); break;
        case 2: gemv_block_rows(&part, f, 2); break;
        case 3: gemv_block_rows(&part, f, 3); break;
        default: gemv_block_rows(&part, f, 4);
        }
    }
}

// weight_kernels.integers of types with blocks of 256 columns
INLINE void integers_of_blocks(const matrix_view *w, ptrdiff_t row, ptrdiff_t k0, ptrdiff_t count, integer_blocks f,
                               int16_t *to, float *scales, float *minima) {
    const int parts = STEP / f.sub_block;
    for (ptrdiff_t p = k0, end = k0 + count; p < end; p = (p / K_BLOCK + 1) * K_BLOCK) {
        const uint8_t *block = (const uint8_t *)w->data + row * w->row_stride + p / K_BLOCK * f.bytes;
        const ptrdiff_t stop = (p / K_BLOCK + 1) * K_BLOCK < end ? (p / K_BLOCK + 1) * K_BLOCK : end;
        const int first = (int)(p % K_BLOCK) / STEP, last = first + (int)(stop - p) / STEP;
        v8 scale[SUBS], minimum[SUBS] = {{0}, {0}};
        f.scales(block, scale, minimum);
#pragma GCC unroll 8
        for (int step = 0; step < K_BLOCK / STEP; step++) {
            if (step < first || step >= last) continue;
            vh values[INTEGER_VECTORS];
            f.read(block, step, values);
            for (int v = 0; v < INTEGER_VECTORS; v++) vhstore(to + v * 2 * VLEN, values[v]);
            to += STEP;
            for (int part = 0; part < parts; part++) {
                *scales++ = scale[(step * parts + part) / 8][(step * parts + part) % 8];
                *minima++ = f.has_minimum ? minimum[(step * parts + part) / 8][(step * parts + part) % 8] : 0.0f;
            }
        }
    }
}
#endif

// weight_kernels.x_form of types with byte_blocks
#if HAS_PLANES
enum { X_SIXTEENS = GEMV_SIXTEENS, X_EIGHTS = GEMV_EIGHTS };
#else
enum { X_SIXTEENS = GEMV_STEPS, X_EIGHTS = GEMV_STEPS };
#endif
