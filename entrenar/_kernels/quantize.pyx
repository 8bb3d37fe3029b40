"""Rows of fp32 to a weight type and back, parallel over rows, which are independent.

The types are the rows of the traits table (simd/weights/types.c). What can fail returns QUANTIZE_* flags, combined
with |; the output is then unspecified.
"""
from cython.parallel cimport prange
from libc.stdint cimport uint8_t

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport ceil_div, min, threads_for
from entrenar._kernels.simd.matrix_view cimport matrix_view
from entrenar._kernels.simd.weights.types cimport weight_type

cdef enum:
    GRAIN = 32768  # weights worth a thread


# values[n, k / block * block_bytes], scales[n, k / block] (of types that have such, else unused) <- x[n, k]
cdef int quantize_rows(int type, uint8_t* values, float* scales, const float* x, Py_ssize_t rows,
                       Py_ssize_t columns) noexcept nogil:
    cdef const weight_type* t = &simd.weight_types[type]
    cdef Py_ssize_t row, blocks = columns // t.block, stride = blocks * t.block_bytes
    cdef Py_ssize_t scales_a_row = blocks if t.has_scales else 0
    cdef int status = 0
    for row in prange(rows if columns else 0, schedule="static", num_threads=threads_for(rows * columns, GRAIN)):
        status |= t.kernels.quantize_row(values + row * stride, scales + row * scales_a_row, x + row * columns, columns)
    return status


# whether values[n, k / block * block_bytes] can be used as they are
cdef int check_rows(int type, const uint8_t* values, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    cdef const weight_type* t = &simd.weight_types[type]
    cdef Py_ssize_t row, stride = columns // t.block * t.block_bytes
    cdef int status = 0
    if t.kernels.check_row == NULL:
        return status
    for row in prange(rows if columns else 0, schedule="static",
                      num_threads=threads_for(rows * columns, 8 * GRAIN)):
        status |= t.kernels.check_row(values + row * stride, columns)
    return status


# values[n], second[ceil(n / group)] <- scales[n]: the map value nearest to (scale - offset) / second
cdef void quantize_scales(uint8_t* values, float* second, const float* scales, float offset, const float* map,
                          Py_ssize_t count, Py_ssize_t group) noexcept nogil:
    cdef Py_ssize_t i, start
    for i in prange(ceil_div(count, group), schedule="static", num_threads=threads_for(count * 16, GRAIN)):
        start = i * group
        simd.quantize.scales(values + start, second + i, scales + start, offset, map, min(group, count - start))


# out[rows, k] <- rows [first, first + rows) of a matrix of any weight type
cdef void dequantize_rows(float* out, const matrix_view* view, Py_ssize_t first, Py_ssize_t rows) noexcept nogil:
    cdef Py_ssize_t row, columns = view.columns
    for row in prange(rows if columns else 0, schedule="static", num_threads=threads_for(rows * columns, GRAIN)):
        dequantize_run(out + row * columns, view, first + row, 0, columns)


# out[count] <- columns [k0, k0 + count) of one row of a matrix of any weight type
cdef void dequantize_run(float* out, const matrix_view* view, Py_ssize_t row, Py_ssize_t k0,
                         Py_ssize_t count) noexcept nogil:
    simd.weight_types[view.type].kernels.dequantize_row(view, row, k0, count, out)
