"""Elementwise functions over fixed pieces of a buffer; which function is a member of the dispatch table."""
from cython.parallel cimport prange
from libc.stdint cimport int64_t

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport ceil_div, piece_size, threads_for
from entrenar._kernels.profile cimport begin_kernel, end_kernel, register
from entrenar._kernels.simd.activation cimport activation_backward, activation_forward

cdef enum:
    PIECE = 4096  # elements of a job
    GRAIN = 8192  # elements worth a thread

cdef int ACTIVATION_FORWARD = register("activation_forward")
cdef int ACTIVATION_BACKWARD = register("activation_backward")
cdef int POW_FORWARD = register("pow_forward")
cdef int POW_BACKWARD = register("pow_backward")
cdef int SWIGLU_FORWARD = register("swiglu_forward")
cdef int SWIGLU_BACKWARD = register("swiglu_backward")


# y [n] = f(x [n]);  dx [n] (+)= dy [n] f'(saved [n])
cdef void map_forward(activation_forward function, float* y, const float* x, Py_ssize_t n) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        function(y + i * PIECE, x + i * PIECE, piece_size(n, PIECE, i))
    end_kernel(ACTIVATION_FORWARD, started, n, 8 * n)


cdef void map_backward(activation_backward slope, float* dx, const float* dy, const float* saved, Py_ssize_t n,
                       bint accumulate) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        slope(dx + i * PIECE, dy + i * PIECE, saved + i * PIECE, piece_size(n, PIECE, i), accumulate)
    end_kernel(ACTIVATION_BACKWARD, started, 2 * n, (12 + 4 * accumulate) * n)


# y [n] = x [n]^e;  dx [n] (+)= dy e x^(e - 1)
cdef void pow_forward(float* y, const float* x, float exponent, Py_ssize_t n) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        simd.activation.pow(y + i * PIECE, x + i * PIECE, exponent, piece_size(n, PIECE, i))
    end_kernel(POW_FORWARD, started, n, 8 * n)


cdef void pow_backward(float* dx, const float* dy, const float* x, float exponent, Py_ssize_t n,
                       bint accumulate) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        simd.activation.pow_backward(dx + i * PIECE, dy + i * PIECE, x + i * PIECE, exponent, piece_size(n, PIECE, i),
                                     accumulate)
    end_kernel(POW_BACKWARD, started, 3 * n, (12 + 4 * accumulate) * n)


# y [n] = silu(gate [n]) up [n];  dgate (+)= dy up silu'(gate), dup (+)= dy silu(gate); either may be NULL
cdef void swiglu_forward(float* y, const float* gate, const float* up, Py_ssize_t n) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        simd.activation.swiglu(y + i * PIECE, gate + i * PIECE, up + i * PIECE, piece_size(n, PIECE, i))
    end_kernel(SWIGLU_FORWARD, started, 3 * n, 12 * n)


cdef void swiglu_backward(float* dgate, float* dup, const float* dy, const float* gate, const float* up, Py_ssize_t n,
                          bint accumulate_gate, bint accumulate_up) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        simd.activation.swiglu_backward(
            NULL if dgate == NULL else dgate + i * PIECE, NULL if dup == NULL else dup + i * PIECE, dy + i * PIECE,
            gate + i * PIECE, up + i * PIECE, piece_size(n, PIECE, i), accumulate_gate, accumulate_up)
    end_kernel(SWIGLU_BACKWARD, started, 8 * n, 20 * n)
