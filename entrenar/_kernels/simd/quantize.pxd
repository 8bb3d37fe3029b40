# Made from the header by scripts/simd_pxd.py.
from libc.stdint cimport int16_t, uint8_t

from entrenar._kernels.simd.matrix_view cimport matrix_view

cdef extern from "simd/quantize.h" nogil:
    enum:
        QUANTIZE_OK
        QUANTIZE_NOT_FINITE
        QUANTIZE_SCALE_OVERFLOW
    ctypedef struct quantize_ops:
        int (* nf4)(uint8_t* values, float* absmax, const float* x, Py_ssize_t columns) noexcept nogil
        int (* q4_0)(uint8_t* blocks, const float* x, Py_ssize_t columns) noexcept nogil
        int (* q4_1)(uint8_t* blocks, const float* x, Py_ssize_t columns) noexcept nogil
        int (* q8_0)(uint8_t* blocks, const float* x, Py_ssize_t columns) noexcept nogil
        int (* int16)(int16_t* values, float* scales, const float* x, Py_ssize_t columns) noexcept nogil
        void (* absmax)(uint8_t* values, float* second, const float* absmax, float offset, const float* map,
                        Py_ssize_t count) noexcept nogil
        int (* ggml_scales)(const uint8_t* blocks, Py_ssize_t count, Py_ssize_t size, int minimum) noexcept nogil
        void (* dequantize_row)(const matrix_view* s, Py_ssize_t row, Py_ssize_t k0, Py_ssize_t count,
                                float* out) noexcept nogil
