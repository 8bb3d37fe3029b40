# Made from the header by scripts/simd_pxd.py.
cdef extern from "simd/skinny.h" nogil:
    enum:
        SKINNY_ONES
    const float* skinny_ones
    ctypedef struct skinny_args:
        float* c
        const float* a
        const float* b
        const float* beta
        Py_ssize_t ldc
        Py_ssize_t rs_a
        Py_ssize_t cs_a
        Py_ssize_t ldb
        Py_ssize_t m
        Py_ssize_t n
        Py_ssize_t k
    ctypedef struct skinny_ops:
        void (*multiply)(const skinny_args* s) noexcept nogil
