# Made from the header by scripts/simd_pxd.py.
from entrenar._kernels.simd.matrix_view cimport matrix_view

cdef extern from "simd/gemm.h" nogil:
    enum:
        GEMM_BLOCK
        GEMM_FP32
        GEMM_INT16
        GEMM_INT8
        GEMM_STEPS
        GEMM_HALF_STEPS
        GEMM_FORMATS
    ctypedef void gemm_packer(float* packed, int width, const matrix_view* matrix, int k_major, Py_ssize_t first,
                              int count, Py_ssize_t p0, Py_ssize_t kc) noexcept nogil
    ctypedef struct gemm_format:
        int mr
        int nr
        int packmr
        int block
        int block_words
        gemm_packer* pack_a
        gemm_packer* pack_b
        void (*micro_kernel)(float* c, Py_ssize_t ldc, const float* packed_a, const float* packed_b, Py_ssize_t kc,
                             int m, int n, int accumulate) noexcept nogil
    ctypedef struct gemm_operand_b:
        float* c
        const matrix_view* b
        Py_ssize_t n
    ctypedef struct gemm_ops:
        const gemm_format* format[GEMM_FORMATS]
