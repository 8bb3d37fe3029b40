# Made from the header by scripts/simd_pxd.py.
from entrenar._kernels.simd.matrix_view cimport matrix_view

cdef extern from "simd/gemm.h" nogil:
    enum:
        GEMM_BLOCK
        GEMM_FP32
        GEMM_INT16
        GEMM_INT8
        GEMM_FORMATS
        GEMM_ONES
    const float* gemm_ones
    ctypedef void gemm_packer_function(float* out, int lanes, const matrix_view* s, Py_ssize_t first, int count,
                                       Py_ssize_t start, Py_ssize_t depth) noexcept nogil
    ctypedef gemm_packer_function* gemm_packer
    ctypedef struct gemm_format:
        int mr
        int packmr
        int nr
        int block
        int block_words
        gemm_packer pack_a
        gemm_packer pack_a_transposed
        gemm_packer pack_b_transposed
        gemm_packer pack_b
        void (*micro_kernel)(float* c, Py_ssize_t ldc, const float* left, const float* right, Py_ssize_t depth,
                             int rows, int columns, int accumulate) noexcept nogil
    ctypedef struct gemm_ops:
        const gemm_format* format[GEMM_FORMATS]
        gemm_packer pack_columns
        void (*skinny)(float* c, Py_ssize_t ldc, const float* a, Py_ssize_t a_row, Py_ssize_t a_column, const float* b,
                       Py_ssize_t ldb, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, const float* keep) noexcept nogil
