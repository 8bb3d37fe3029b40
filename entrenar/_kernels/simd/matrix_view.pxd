# Made from the header by scripts/simd_pxd.py.
from libc.stdint cimport uint8_t

cdef extern from "simd/matrix_view.h" nogil:
    ctypedef struct matrix_view:
        int type
        const void* data
        Py_ssize_t row_stride
        Py_ssize_t columns
        const float* scales
        const uint8_t* quantized_scales
        const float* scale_map
        float scale_offset
