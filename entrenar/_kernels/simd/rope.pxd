# Made from the header by scripts/simd_pxd.py.
cdef extern from "simd/rope.h" nogil:
    ctypedef struct rope_ops:
        void (*rotate)(float* y, const float* x, const float* cos, const float* sin, float sign, Py_ssize_t heads,
                       Py_ssize_t half, Py_ssize_t rest, int accumulate) noexcept nogil
