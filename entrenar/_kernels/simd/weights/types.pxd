# Made from the header by scripts/simd_pxd.py.
from libc.stdint cimport int16_t

from entrenar._kernels.simd.gemv cimport gemv_args
from entrenar._kernels.simd.matrix_view cimport matrix_view

cdef extern from "simd/weights/types.h" nogil:
    enum:
        WEIGHT_F32
        WEIGHT_BF16
        WEIGHT_F16
        INT16_LIMIT
        QUANTIZE_OK
        QUANTIZE_NOT_FINITE
        QUANTIZE_SCALE_OVERFLOW
        QUANTIZE_OUT_OF_RANGE
    ctypedef struct weight_kernels:
        void (*dequantize_row)(const matrix_view* s, Py_ssize_t row, Py_ssize_t k0, Py_ssize_t count,
                               float* out) noexcept nogil
        int (*quantize_row)(void* values, float* scales, const float* x, Py_ssize_t columns) noexcept nogil
        int (*check_row)(const void* values, Py_ssize_t columns) noexcept nogil
        void (*gemv)(const gemv_args* g) noexcept nogil
        void (*gemv_integer)(const gemv_args* g) noexcept nogil
        void (*integers)(const matrix_view* s, Py_ssize_t stored_row, Py_ssize_t k0, Py_ssize_t count, int16_t* values,
                         float* scales, float* minima) noexcept nogil
        int x_form
    ctypedef struct weight_type:
        const char* name
        const char* gguf_name
        int gguf_type
        int is_quantized
        int bits
        int block
        int block_bytes
        int half_steps
        int has_scales
        int scale_block
        int int16_panels
        const weight_kernels* kernels
    matrix_view f32_view(const float* data, Py_ssize_t row_stride, Py_ssize_t columns) noexcept
