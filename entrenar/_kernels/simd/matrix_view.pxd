# Made from the header by scripts/simd_pxd.py.
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
