from libc.stdint cimport uint8_t

from entrenar._kernels.simd.matrix_view cimport matrix_view

cdef int quantize_rows(int type, uint8_t* values, float* scales, const float* x, Py_ssize_t rows,
                       Py_ssize_t columns) noexcept nogil
cdef int check_rows(int type, const uint8_t* values, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil
cdef void quantize_scales(uint8_t* values, float* second, const float* scales, float offset, const float* map,
                          Py_ssize_t count, Py_ssize_t group) noexcept nogil
cdef void dequantize_rows(float* out, const matrix_view* view, Py_ssize_t first, Py_ssize_t rows) noexcept nogil
cdef void dequantize_run(float* out, const matrix_view* view, Py_ssize_t row, Py_ssize_t k0,
                         Py_ssize_t count) noexcept nogil
