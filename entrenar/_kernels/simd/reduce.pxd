# Made from the header by scripts/simd_pxd.py.
cdef extern from "simd/reduce.h" nogil:
    ctypedef struct reduce_ops:
        double (*sum)(const float* x, Py_ssize_t n) noexcept nogil
        float (*max)(const float* x, Py_ssize_t n) noexcept nogil
        void (*sum_rows)(double* acc, const float* x, Py_ssize_t rows, Py_ssize_t stride, Py_ssize_t n) noexcept nogil
        void (*max_rows)(double* acc, const float* x, Py_ssize_t rows, Py_ssize_t stride, Py_ssize_t n) noexcept nogil
