"""Softmax and log-softmax over rows."""
from cython.parallel cimport prange

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport threads_for

cdef enum:
    GRAIN = 4096  # elements that pay for waking one more thread


# y [rows][n] = e^x / sum e^x;  dx (+)= y (dy - sum dy y)
cdef void softmax_forward(float* y, const float* x, Py_ssize_t rows, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in prange(rows, schedule="static", num_threads=threads_for(rows * n, GRAIN)):
        simd.softmax.softmax(y + i * n, x + i * n, n)


cdef void softmax_backward(float* dx, const float* dy, const float* y, Py_ssize_t rows, Py_ssize_t n,
                           bint accumulate) noexcept nogil:
    cdef Py_ssize_t i
    for i in prange(rows, schedule="static", num_threads=threads_for(rows * n, GRAIN)):
        simd.softmax.softmax_backward(dx + i * n, dy + i * n, y + i * n, n, accumulate)


# y [rows][n] = x - ln sum e^x;  dx (+)= dy - e^y sum dy
cdef void log_softmax_forward(float* y, const float* x, Py_ssize_t rows, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in prange(rows, schedule="static", num_threads=threads_for(rows * n, GRAIN)):
        simd.softmax.log_softmax(y + i * n, x + i * n, n)


cdef void log_softmax_backward(float* dx, const float* dy, const float* y, Py_ssize_t rows, Py_ssize_t n,
                               bint accumulate) noexcept nogil:
    cdef Py_ssize_t i
    for i in prange(rows, schedule="static", num_threads=threads_for(rows * n, GRAIN)):
        simd.softmax.log_softmax_backward(dx + i * n, dy + i * n, y + i * n, n, accumulate)
