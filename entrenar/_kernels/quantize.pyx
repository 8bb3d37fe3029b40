"""Quantized weights: quantization of fp32 rows to NF4, Q4_0, Q4_1, Q8_0 or INT16, and back.

Parallel over rows, which are independent. The formats are described in simd/matrix_view.h. The quantizers return 0, or
QUANT_* flags (combined with |) for input that cannot be quantized; the output is then unspecified.
"""
from cython.parallel cimport prange
from libc.stdint cimport int16_t, uint8_t

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport ceil_div, min, threads_for
from entrenar._kernels.simd.matrix_view cimport (
    GGML_BLOCK, INT16_BLOCK, NF4_BLOCK, NF4_SECOND_BLOCK, Q4_0_BYTES, Q4_1_BYTES, Q8_0_BYTES, matrix_view,
)

cdef enum:
    GRAIN = 32768  # weights that are worth a thread


# values[n, k/2], absmax[n, k/64] <- x[n, k]: absmax = max |x| of a block, value = nearest NF4 value to x * (1 / absmax)
cdef int nf4_quantize(uint8_t* values, float* absmax, const float* x, Py_ssize_t rows,
                      Py_ssize_t columns) noexcept nogil:
    cdef Py_ssize_t row
    cdef int status = 0
    for row in prange(rows, schedule="static", num_threads=threads_for(rows * columns, GRAIN)):
        status |= simd.quantize.nf4(values + row * (columns // 2), absmax + row * (columns // NF4_BLOCK),
                                    x + row * columns, columns)
    return status


# blocks[n, k/32 * (18 or 20)] <- x[n, k]: Q4_0, or with `minimum` Q4_1
cdef int q4_quantize(uint8_t* blocks, const float* x, Py_ssize_t rows, Py_ssize_t columns, bint minimum) noexcept nogil:
    cdef Py_ssize_t row, stride = columns // GGML_BLOCK * (Q4_1_BYTES if minimum else Q4_0_BYTES)
    cdef int status = 0
    for row in prange(rows, schedule="static", num_threads=threads_for(rows * columns, GRAIN)):
        if minimum:
            status |= simd.quantize.q4_1(blocks + row * stride, x + row * columns, columns)
        else:
            status |= simd.quantize.q4_0(blocks + row * stride, x + row * columns, columns)
    return status


# blocks[n, k/32 * 34] <- x[n, k]
cdef int q8_quantize(uint8_t* blocks, const float* x, Py_ssize_t rows, Py_ssize_t columns) noexcept nogil:
    cdef Py_ssize_t row, stride = columns // GGML_BLOCK * Q8_0_BYTES
    cdef int status = 0
    for row in prange(rows, schedule="static", num_threads=threads_for(rows * columns, GRAIN)):
        status |= simd.quantize.q8_0(blocks + row * stride, x + row * columns, columns)
    return status


# values[n, k], scales[n, k/64] <- x[n, k]: scale = max |x| of a block / 4095, value = x / scale to the nearest
cdef int int16_quantize(int16_t* values, float* scales, const float* x, Py_ssize_t rows,
                        Py_ssize_t columns) noexcept nogil:
    cdef Py_ssize_t row
    cdef int status = 0
    for row in prange(rows, schedule="static", num_threads=threads_for(rows * columns, GRAIN)):
        status |= simd.quantize.int16(values + row * columns, scales + row * (columns // INT16_BLOCK),
                                      x + row * columns, columns)
    return status


# QUANTIZE_NOT_FINITE where one of ggml's blocks[rows, count] of `size` bytes has a scale or minimum that is not finite
cdef int ggml_check(const uint8_t* blocks, Py_ssize_t rows, Py_ssize_t count, Py_ssize_t size,
                    bint minimum) noexcept nogil:
    cdef Py_ssize_t row
    cdef int status = 0
    for row in prange(rows, schedule="static", num_threads=threads_for(rows * count, GRAIN // 4)):
        status |= simd.quantize.ggml_scales(blocks + row * count * size, count, size, minimum)
    return status


# values[n], second[ceil(n / 256)] <- absmax[n]: the map value nearest to (absmax - offset) / second
cdef void absmax_quantize(uint8_t* values, float* second, const float* absmax, float offset, const float* map,
                          Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t group, start, groups = ceil_div(count, NF4_SECOND_BLOCK)
    for group in prange(groups, schedule="static", num_threads=threads_for(count * 16, GRAIN)):
        start = group * NF4_SECOND_BLOCK
        simd.quantize.absmax(values + start, second + group, absmax + start, offset, map,
                          min(<Py_ssize_t> NF4_SECOND_BLOCK, count - start))


# out[rows, k] <- rows [first, first + rows) of any weight type
cdef void dequantize_rows(float* out, const matrix_view* view, Py_ssize_t first, Py_ssize_t rows) noexcept nogil:
    cdef Py_ssize_t row, columns = view.columns
    for row in prange(rows, schedule="static", num_threads=threads_for(rows * columns, GRAIN)):
        simd.quantize.dequantize_row(view, first + row, 0, columns, out + row * columns)


# out[count] <- columns [k0, k0 + count) of one row of any weight type
cdef void dequantize_run(float* out, const matrix_view* view, Py_ssize_t row, Py_ssize_t k0,
                     Py_ssize_t count) noexcept nogil:
    simd.quantize.dequantize_row(view, row, k0, count, out)
