# Made from the header by scripts/simd_pxd.py.
cdef extern from "simd/norm.h" nogil:
    ctypedef struct norm_ops:
        float (*rms_forward)(float* y, const float* x, const float* w, Py_ssize_t dim, float eps) noexcept nogil
        void (*rms_backward)(float* dx, float* dw, const float* dy, const float* x, const float* w, float rstd,
                             Py_ssize_t dim, int accumulate) noexcept nogil
        void (*layer_forward)(float* y, float* mean, float* rstd, const float* x, const float* w, const float* b,
                              Py_ssize_t dim, float eps) noexcept nogil
        void (*layer_backward)(float* dx, float* dw, float* db, const float* dy, const float* x, const float* w,
                               float mean, float rstd, Py_ssize_t dim, int accumulate) noexcept nogil
