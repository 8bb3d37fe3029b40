# The source of a weight matrix (fp32, bf16, NF4, Q4_0, Q4_1, Q8_0 or int16 rows): Cython fills it in, micro-kernels
# decode it.
from libc.stdint cimport uint8_t

cdef extern from "simd/source.h" nogil:
    enum:
        SOURCE_F32
        SOURCE_BF16
        SOURCE_NF4
        SOURCE_Q4_0
        SOURCE_Q4_1
        SOURCE_INT16
        SOURCE_Q8_0
        INT16_BLOCK
        INT16_LIMIT
        NF4_BLOCK
        NF4_SECOND_BLOCK
        GGML_BLOCK
        Q4_0_BYTES
        Q4_1_BYTES
        Q8_0_BYTES
    ctypedef struct weight_source:
        int kind
        const void* data
        Py_ssize_t row_stride
        const float* absmax
        const uint8_t* absmax_codes
        const float* absmax_map
        float absmax_offset
        Py_ssize_t columns
