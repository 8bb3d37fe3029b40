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
    ctypedef struct attention_tile:
        float* scores
        const int32_t* start
        const int32_t* limit
        Py_ssize_t keys
        Py_ssize_t rows
        int32_t first_key
        int masked
        float softcap
    ctypedef struct attention_ops:
        void (*gather)(float* tile, Py_ssize_t ld, const float* x, const attention_rows* view) noexcept nogil
        void (*prefetch)(const float* x, const attention_rows* view) noexcept nogil
        void (*gather_transposed)(float* tile, Py_ssize_t ld, const float* x, const attention_rows* view,
                                  float scale) noexcept nogil
        void (*scatter)(float* x, const float* tile, Py_ssize_t ld, const float* factor, const attention_rows* view,
                        int accumulate) noexcept nogil
        void (*softmax_step)(const attention_tile* t, float* row_max, float* row_sum, float* correction) noexcept nogil
        void (*softmax_backward)(const attention_tile* t, float* dp, const float* row_max, const float* inverse_row_sum,
                                 const float* delta, float scale) noexcept nogil
        void (*row_dots)(float* dot, const float* a, const float* b, Py_ssize_t ld, Py_ssize_t rows,
                         Py_ssize_t dim) noexcept nogil
