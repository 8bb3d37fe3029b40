# Made from the header by scripts/simd_pxd.py.
cdef extern from "simd/shape.h" nogil:
    ctypedef struct shape_ops:
        void (*transpose)(float* y, Py_ssize_t ldy, const float* x, Py_ssize_t ldx, Py_ssize_t rows, Py_ssize_t cols,
                          int accumulate) noexcept nogil
