"""Elementwise functions over fixed pieces of a buffer; which function is a member of the dispatch table."""
from cython.parallel cimport prange

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport ceil_div, piece_size, threads_for
from entrenar._kernels.simd.activation cimport activation_backward, activation_forward

cdef enum:
    PIECE = 4096  # elements of a job
    GRAIN = 8192  # elements that pay for waking one more thread


# y [n] = f(x [n]);  dx [n] (+)= dy [n] f'(saved [n])
cdef void map_forward(activation_forward function, float* y, const float* x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    if n <= PIECE:
        function(y, x, n)
        return  # waking OpenMP costs more than the work
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        function(y + i * PIECE, x + i * PIECE, piece_size(n, PIECE, i))


cdef void map_backward(activation_backward slope, float* dx, const float* dy, const float* saved, Py_ssize_t n,
                       bint accumulate) noexcept nogil:
    cdef Py_ssize_t i
    if n <= PIECE:
        slope(dx, dy, saved, n, accumulate)
        return  # waking OpenMP costs more than the work
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        slope(dx + i * PIECE, dy + i * PIECE, saved + i * PIECE, piece_size(n, PIECE, i), accumulate)


# y [n] = x [n]^e;  dx [n] (+)= dy e x^(e - 1)
cdef void pow_forward(float* y, const float* x, float exponent, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        simd.activation.pow(y + i * PIECE, x + i * PIECE, exponent, piece_size(n, PIECE, i))


cdef void pow_backward(float* dx, const float* dy, const float* x, float exponent, Py_ssize_t n,
                       bint accumulate) noexcept nogil:
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        simd.activation.pow_backward(dx + i * PIECE, dy + i * PIECE, x + i * PIECE, exponent, piece_size(n, PIECE, i),
                                     accumulate)


# y [n] = silu(gate [n]) up [n];  dgate (+)= dy up silu'(gate), dup (+)= dy silu(gate); either may be NULL
cdef void swiglu_forward(float* y, const float* gate, const float* up, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    if n <= PIECE:
        simd.activation.swiglu(y, gate, up, n)
        return  # waking OpenMP costs more than the work
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        simd.activation.swiglu(y + i * PIECE, gate + i * PIECE, up + i * PIECE, piece_size(n, PIECE, i))


cdef void swiglu_backward(float* dgate, float* dup, const float* dy, const float* gate, const float* up, Py_ssize_t n,
                          bint accumulate_gate, bint accumulate_up) noexcept nogil:
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        simd.activation.swiglu_backward(
            NULL if dgate == NULL else dgate + i * PIECE, NULL if dup == NULL else dup + i * PIECE, dy + i * PIECE,
            gate + i * PIECE, up + i * PIECE, piece_size(n, PIECE, i), accumulate_gate, accumulate_up)
