"""Softmax and log-softmax over rows."""
from cython.parallel cimport prange
from libc.stdint cimport int64_t

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport threads_for
from entrenar._kernels.profile cimport begin_kernel, end_kernel, register, shape_of

cdef enum:
    GRAIN = 4096  # elements worth a thread

cdef int SOFTMAX_FORWARD = register("softmax_forward")
cdef int SOFTMAX_BACKWARD = register("softmax_backward")
cdef int LOG_SOFTMAX_FORWARD = register("log_softmax_forward")
cdef int LOG_SOFTMAX_BACKWARD = register("log_softmax_backward")


# y [rows][n] = e^x / sum e^x;  dx (+)= y (dy - sum dy y)
cdef void softmax_forward(float* y, const float* x, Py_ssize_t rows, Py_ssize_t n) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(rows, schedule="static", num_threads=threads_for(rows * n, GRAIN)):
        simd.softmax.softmax(y + i * n, x + i * n, n)
    end_kernel(SOFTMAX_FORWARD, started, shape_of(rows, n), 4 * rows * n, 8 * rows * n)


cdef void softmax_backward(float* dx, const float* dy, const float* y, Py_ssize_t rows, Py_ssize_t n,
                           bint accumulate) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(rows, schedule="static", num_threads=threads_for(rows * n, GRAIN)):
        simd.softmax.softmax_backward(dx + i * n, dy + i * n, y + i * n, n, accumulate)
    end_kernel(SOFTMAX_BACKWARD, started, shape_of(rows, n), 4 * rows * n, 12 * rows * n)


# y [rows][n] = x - ln sum e^x;  dx (+)= dy - e^y sum dy
cdef void log_softmax_forward(float* y, const float* x, Py_ssize_t rows, Py_ssize_t n) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(rows, schedule="static", num_threads=threads_for(rows * n, GRAIN)):
        simd.softmax.log_softmax(y + i * n, x + i * n, n)
    end_kernel(LOG_SOFTMAX_FORWARD, started, shape_of(rows, n), 4 * rows * n, 8 * rows * n)


cdef void log_softmax_backward(float* dx, const float* dy, const float* y, Py_ssize_t rows, Py_ssize_t n,
                               bint accumulate) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(rows, schedule="static", num_threads=threads_for(rows * n, GRAIN)):
        simd.softmax.log_softmax_backward(dx + i * n, dy + i * n, y + i * n, n, accumulate)
    end_kernel(LOG_SOFTMAX_BACKWARD, started, shape_of(rows, n), 4 * rows * n, 12 * rows * n)
