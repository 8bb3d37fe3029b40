# Made from the header by scripts/simd_pxd.py.
from libc.stdint cimport uint8_t

cdef extern from "simd/quantize.h" nogil:
    ctypedef struct quantize_ops:
        void (*scales)(uint8_t* values, float* second, const float* scales, float offset, const float* map,
                       Py_ssize_t count) noexcept nogil
