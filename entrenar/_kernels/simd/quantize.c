// Scales as 8-bit values.
#include "simd/quantize.h"
#include "simd/vec.h"

// The nearest of 256 sorted values; of two as near, the lower.
INLINE uint8_t nearest(const float *map, float x) {
    int low = 0, high = 255;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (map[middle] <= x) low = middle;
        else high = middle;
    }
    return (uint8_t)(map[high] - x < x - map[low] ? high : low);
}

static void quantize_scales(uint8_t *values, float *second, const float *scales, float offset, const float *map,
                            ptrdiff_t count) {
    float largest = 0.0f;
    for (ptrdiff_t i = 0; i < count; i++) {
        float magnitude = fabsf(scales[i] - offset);
        if (magnitude > largest) largest = magnitude;
    }
    *second = largest;
    for (ptrdiff_t i = 0; i < count; i++)
        values[i] = nearest(map, largest > 0.0f ? (scales[i] - offset) / largest : 0.0f);
}

const quantize_ops TIERED(quantize_table) = {.scales = quantize_scales};
