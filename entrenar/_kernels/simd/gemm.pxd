from entrenar._kernels.simd.source cimport weight_source

cdef extern from "simd/gemm.h" nogil:
    enum:
        GEMM_FEW_ROWS
        GEMM_BLOCK
        GEMM_FP32
        GEMM_INT16
        GEMM_INT8
    const float* gemm_ones  # 64 of them
    ctypedef void (*gemm_packer)(float* out, int lanes, const weight_source* s, Py_ssize_t first, int count, Py_ssize_t start, Py_ssize_t depth) noexcept nogil
    ctypedef struct gemm_format:
        int rows
        int left_lanes
        int right_lanes
        int block
        int block_words
        gemm_packer pack_left_rows
        gemm_packer pack_left_columns
        gemm_packer pack_right_rows
        gemm_packer pack_right_columns
        void (*tile)(float* c, Py_ssize_t ldc, const float* left, const float* right, Py_ssize_t depth, int rows, int columns, bint accumulate) noexcept nogil
    Py_ssize_t gemm_few_words(Py_ssize_t k) noexcept
    ctypedef struct gemm_ops:
        const gemm_format* format[3]
        void (*pack_columns)(float* out, int lanes, const weight_source* s, Py_ssize_t first, int count, Py_ssize_t start, Py_ssize_t depth) noexcept nogil
        void (*few_rows)(float* y, Py_ssize_t ldy, const float* x, Py_ssize_t ldx, int rows, const weight_source* s, Py_ssize_t first, Py_ssize_t count, Py_ssize_t k, bint accumulate) noexcept nogil
        void (*few_rows_codes)(float* codes, const float* x, Py_ssize_t k) noexcept nogil
        void (*few_rows_integer)(float* y, Py_ssize_t ldy, const float* codes, int rows, const weight_source* s, Py_ssize_t first, Py_ssize_t count, Py_ssize_t k) noexcept nogil
        void (*strided)(float* c, Py_ssize_t ldc, const float* a, Py_ssize_t a_row, Py_ssize_t a_column,
                       const float* b, Py_ssize_t ldb, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k,
                       const float* keep) noexcept nogil
