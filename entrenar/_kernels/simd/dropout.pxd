# Made from the header by scripts/simd_pxd.py.
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "simd/dropout.h" nogil:
    enum:
        PHILOX_GROUP
    ctypedef struct dropout_ops:
        void (*apply)(float* y, const float* x, Py_ssize_t n, uint64_t first, uint32_t threshold, float scale,
                      uint64_t key, uint64_t stream, int accumulate) noexcept nogil
        void (*philox)(uint32_t* words, const uint32_t* counter, const uint32_t* key) noexcept nogil
