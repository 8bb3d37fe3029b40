# Made from the header by scripts/simd_pxd.py.
cdef extern from "simd/softmax.h" nogil:
    ctypedef struct softmax_ops:
        float (*log_sum_exp)(const float* x, Py_ssize_t n) noexcept nogil
        void (*softmax)(float* y, const float* x, Py_ssize_t n) noexcept nogil
        void (*softmax_backward)(float* dx, const float* dy, const float* y, Py_ssize_t n,
                                 int accumulate) noexcept nogil
        void (*log_softmax)(float* y, const float* x, Py_ssize_t n) noexcept nogil
        void (*log_softmax_backward)(float* dx, const float* dy, const float* y, Py_ssize_t n,
                                     int accumulate) noexcept nogil
        void (*cross_entropy_backward)(float* dx, const float* x, float lse, Py_ssize_t target, float scale,
                                       Py_ssize_t n, int accumulate) noexcept nogil
