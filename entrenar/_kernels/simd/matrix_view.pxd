# The source of a weight matrix (fp32, bf16, NF4, Q4_0, Q4_1, Q8_0 or int16 rows): Cython fills it in, micro-kernels
# decode it.
from libc.stdint cimport uint8_t

cdef extern from "simd/matrix_view.h" nogil:
    enum:
        WEIGHT_F32
        WEIGHT_BF16
        WEIGHT_NF4
        WEIGHT_Q4_0
        WEIGHT_Q4_1
        WEIGHT_INT16
        WEIGHT_Q8_0
        INT16_BLOCK
        INT16_LIMIT
        NF4_BLOCK
        NF4_SECOND_BLOCK
        GGML_BLOCK
        Q4_0_BYTES
        Q4_1_BYTES
        Q8_0_BYTES
    ctypedef struct matrix_view:
        int type
        const void* data
        Py_ssize_t row_stride
        const float* absmax
        const uint8_t* quantized_absmax
        const float* absmax_map
        float absmax_offset
        Py_ssize_t columns
