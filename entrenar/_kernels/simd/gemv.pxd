# Made from the header by scripts/simd_pxd.py.
from entrenar._kernels.simd.matrix_view cimport matrix_view

cdef extern from "simd/gemv.h" nogil:
    enum:
        GEMV_PASS
        GEMV_ROWS
        GEMV_PLANES_ROWS
        GEMV_STEP
        GEMV_STEPS
        GEMV_SIXTEENS
        GEMV_EIGHTS
    ctypedef struct gemv_args:
        float* y
        const float* x
        const matrix_view* w
        Py_ssize_t ldy
        Py_ssize_t ldx
        Py_ssize_t first
        Py_ssize_t count
        Py_ssize_t k
        int m
        int accumulate
    Py_ssize_t gemv_words(Py_ssize_t k) noexcept
    ctypedef struct gemv_ops:
        void (*multiply)(const gemv_args* g) noexcept nogil
        void (*quantize)(float* words, const float* x, Py_ssize_t k, int forms) noexcept nogil
        void (*multiply_integer)(const gemv_args* g) noexcept nogil
