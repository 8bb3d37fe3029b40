# Made from the header by scripts/simd_pxd.py.
cdef extern from "simd/peak.h" nogil:
    ctypedef struct peak_ops:
        double (*fp32)(Py_ssize_t rounds) noexcept nogil
        double (*int16)(Py_ssize_t rounds) noexcept nogil
        double (*int8)(Py_ssize_t rounds) noexcept nogil
        double (*read)(const float* y, Py_ssize_t n) noexcept nogil
        void (*update)(float* x, const float* y, Py_ssize_t n) noexcept nogil
        void (*triad)(float* x, const float* y, const float* z, Py_ssize_t n) noexcept nogil
