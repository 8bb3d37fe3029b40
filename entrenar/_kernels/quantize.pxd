from libc.stdint cimport int16_t, uint8_t

from entrenar._kernels.simd.matrix_view cimport matrix_view

cdef int nf4_quantize(uint8_t* values, float* absmax, const float* x, Py_ssize_t rows,
                      Py_ssize_t columns) noexcept nogil
cdef int q4_quantize(uint8_t* blocks, const float* x, Py_ssize_t rows, Py_ssize_t columns, bint minimum) noexcept nogil
cdef int int16_quantize(int16_t* values, float* scales, const float* x, Py_ssize_t rows,
                        Py_ssize_t columns) noexcept nogil
cdef int q8_quantize(uint8_t* blocks, const float* x, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil
cdef int ggml_check(const uint8_t* blocks, Py_ssize_t rows, Py_ssize_t count, Py_ssize_t size,
                    bint minimum) noexcept nogil
cdef void absmax_quantize(uint8_t* values, float* second, const float* absmax, float offset, const float* map,
                          Py_ssize_t count) noexcept nogil
cdef void dequantize_rows(float* out, const matrix_view* view, Py_ssize_t first, Py_ssize_t rows) noexcept nogil
cdef void dequantize_run(float* out, const matrix_view* view, Py_ssize_t row, Py_ssize_t k0,
                     Py_ssize_t count) noexcept nogil
