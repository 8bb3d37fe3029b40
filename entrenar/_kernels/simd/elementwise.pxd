# Made from the header by scripts/simd_pxd.py.
cdef extern from "simd/elementwise.h" nogil:
    ctypedef struct elementwise_ops:
        void (*add)(float* y, const float* a, const float* b, Py_ssize_t n) noexcept nogil
        void (*sub)(float* y, const float* a, const float* b, Py_ssize_t n) noexcept nogil
        void (*mul)(float* y, const float* a, const float* b, Py_ssize_t n) noexcept nogil
        void (*div)(float* y, const float* a, const float* b, Py_ssize_t n) noexcept nogil
        void (*equal)(float* y, const float* a, const float* b, Py_ssize_t n) noexcept nogil
        void (*add_scalar)(float* y, const float* a, float b, Py_ssize_t n) noexcept nogil
        void (*scale)(float* y, const float* a, float b, Py_ssize_t n) noexcept nogil
        void (*div_scalar)(float* y, const float* a, float b, Py_ssize_t n) noexcept nogil
        void (*equal_scalar)(float* y, const float* a, float b, Py_ssize_t n) noexcept nogil
        void (*scalar_sub)(float* y, float a, const float* b, Py_ssize_t n) noexcept nogil
        void (*scalar_div)(float* y, float a, const float* b, Py_ssize_t n) noexcept nogil
        void (*scale_add)(float* y, const float* a, float b, Py_ssize_t n) noexcept nogil
        void (*mul_add)(float* y, const float* a, const float* b, Py_ssize_t n) noexcept nogil
        void (*fill)(float* y, float a, Py_ssize_t n) noexcept nogil
