# Made from the header by scripts/simd_pxd.py.
from libc.stdint cimport uint8_t

cdef extern from "simd/matrix_view.h" nogil:
    ctypedef struct matrix_view:
        int type
        const void* data
        Py_ssize_t row_stride
        Py_ssize_t columns
        Py_ssize_t half_head
        const float* scales
        const uint8_t* quantized_scales
        const float* scale_map
        float scale_offset
    Py_ssize_t stored_row(const matrix_view* s, Py_ssize_t row) noexcept
