from libc.stdint cimport int16_t, uint8_t

from entrenar._kernels.simd.source cimport weight_source

cdef int nf4_quantize(uint8_t* codes, float* absmax, const float* x, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil
cdef int q4_quantize(uint8_t* blocks, const float* x, Py_ssize_t rows, Py_ssize_t columns, bint minimum) noexcept nogil
cdef int int16_quantize(int16_t* codes, float* scales, const float* x, Py_ssize_t rows,
                        Py_ssize_t columns) noexcept nogil
cdef int q8_quantize(uint8_t* blocks, const float* x, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil
cdef int ggml_check(const uint8_t* blocks, Py_ssize_t rows, Py_ssize_t count, Py_ssize_t size,
                    bint minimum) noexcept nogil
cdef void absmax_quantize(uint8_t* codes, float* second, const float* absmax, float offset, const float* map,
                          Py_ssize_t count) noexcept nogil
cdef void dequantize_rows(float* out, const weight_source* source, Py_ssize_t first, Py_ssize_t rows) noexcept nogil
cdef void decode_run(float* out, const weight_source* source, Py_ssize_t row, Py_ssize_t k0,
                     Py_ssize_t count) noexcept nogil
