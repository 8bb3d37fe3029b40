# Made from the header by scripts/simd_pxd.py.
from libc.stdint cimport int32_t

cdef extern from "simd/attention.h" nogil:
    enum:
        ATTENTION_ROWS
        ATTENTION_KEYS
    ctypedef struct attention_rows:
        Py_ssize_t first
        Py_ssize_t rows
        Py_ssize_t group
        Py_ssize_t stride
        Py_ssize_t dim
    ctypedef struct attention_ops:
        void (* gather)(float* tile, Py_ssize_t ld, const float* x, const attention_rows* view) noexcept nogil
        void (* gather_transposed)(float* tile, Py_ssize_t ld, const float* x, const attention_rows* view,
                                   float scale) noexcept nogil
        void (* scatter)(float* x, const float* tile, Py_ssize_t ld, const float* factor, const attention_rows* view,
                         int accumulate) noexcept nogil
        void (* softmax_step)(float* scores, float* maximum, float* sum, float* keep, const int32_t* limit,
                              int32_t first_key, Py_ssize_t keys, Py_ssize_t rows, int masked) noexcept nogil
        void (* softmax_backward)(float* scores, float* dp, const float* maximum, const float* inverse_sum,
                                  const float* delta, float scale, const int32_t* limit, int32_t first_key,
                                  Py_ssize_t keys, Py_ssize_t rows, int masked) noexcept nogil
        void (* row_dots)(float* dot, const float* a, const float* b, Py_ssize_t ld, Py_ssize_t rows,
                          Py_ssize_t dim) noexcept nogil
