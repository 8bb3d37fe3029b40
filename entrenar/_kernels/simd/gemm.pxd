from entrenar._kernels.simd.source cimport weight_source

cdef extern from "simd/gemm.h" nogil:
    enum:
        GEMM_FEW_ROWS
    ctypedef struct gemm_ops:
        int mr
        int nr
        void (*pack_rows)(float* out, int lanes, const weight_source* s, Py_ssize_t first, int count, Py_ssize_t start, Py_ssize_t depth) noexcept nogil
        void (*pack_columns)(float* out, int lanes, const weight_source* s, Py_ssize_t first, int count, Py_ssize_t start, Py_ssize_t depth) noexcept nogil
        void (*tile)(float* c, Py_ssize_t ldc, const float* a, const float* b, Py_ssize_t depth, int rows, int columns, bint accumulate) noexcept nogil
        void (*few_rows)(float* y, Py_ssize_t ldy, const float* x, Py_ssize_t ldx, int rows, const weight_source* s, Py_ssize_t first, Py_ssize_t count, Py_ssize_t k, bint accumulate) noexcept nogil
