// Double quantization: scales as 8-bit values.
#pragma once
#include <stddef.h>
#include <stdint.h>

typedef struct quantize_ops {
    // second = max |scale - offset| of count scales; values: the nearest of the 256 sorted map values to their quotient
    void (*scales)(uint8_t *values, float *second, const float *scales, float offset, const float *map,
                   ptrdiff_t count);
} quantize_ops;
