"""Elementwise functions over fixed pieces of a buffer; which function is a member of the dispatch table."""
from cython.parallel cimport prange
from libc.stdint cimport int64_t

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport ceil_div, piece_size, threads_for
from entrenar._kernels.profile cimport begin_kernel, end_kernel, register, shape_of
from entrenar._kernels.simd.activation cimport (
    activation_backward, activation_forward, gated_backward, gated_forward, parameter_backward, parameter_forward,
)

cdef enum:
    PIECE = 4096  # elements of a job
    GRAIN = 8192  # elements worth a thread

cdef int ACTIVATION_FORWARD = register("activation_forward")
cdef int ACTIVATION_BACKWARD = register("activation_backward")
cdef int POW_FORWARD = register("pow_forward")
cdef int POW_BACKWARD = register("pow_backward")
cdef int SWIGLU_FORWARD = register("swiglu_forward")
cdef int SWIGLU_BACKWARD = register("swiglu_backward")
cdef int GEGLU_FORWARD = register("geglu_forward")
cdef int GEGLU_BACKWARD = register("geglu_backward")
cdef int SOFTCAP_FORWARD = register("softcap_forward")
cdef int SOFTCAP_BACKWARD = register("softcap_backward")


# y [n] = f(x [n]);  dx [n] (+)= dy [n] f'(saved [n])
cdef void map_forward(activation_forward function, float* y, const float* x, Py_ssize_t n) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        function(y + i * PIECE, x + i * PIECE, piece_size(n, PIECE, i))
    end_kernel(ACTIVATION_FORWARD, started, shape_of(n), n, 8 * n)


cdef void map_backward(activation_backward slope, float* dx, const float* dy, const float* saved, Py_ssize_t n,
                       bint accumulate) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        slope(dx + i * PIECE, dy + i * PIECE, saved + i * PIECE, piece_size(n, PIECE, i), accumulate)
    end_kernel(ACTIVATION_BACKWARD, started, shape_of(n), 2 * n, (12 + 4 * accumulate) * n)


# y [n] = f(x [n], parameter);  dx [n] (+)= dy [n] f'(saved [n], parameter)
cdef inline void with_parameter(int kernel, parameter_forward function, float* y, const float* x, float parameter,
                                Py_ssize_t n) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        function(y + i * PIECE, x + i * PIECE, parameter, piece_size(n, PIECE, i))
    end_kernel(kernel, started, shape_of(n), n, 8 * n)


cdef inline void with_parameter_backward(int kernel, parameter_backward slope, float* dx, const float* dy,
                                         const float* saved, float parameter, Py_ssize_t n,
                                         bint accumulate) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        slope(dx + i * PIECE, dy + i * PIECE, saved + i * PIECE, parameter, piece_size(n, PIECE, i), accumulate)
    end_kernel(kernel, started, shape_of(n), 3 * n, (12 + 4 * accumulate) * n)


# y [n] = x [n]^e;  dx [n] (+)= dy e x^(e - 1)
cdef void pow_forward(float* y, const float* x, float exponent, Py_ssize_t n) noexcept nogil:
    with_parameter(POW_FORWARD, simd.activation.pow, y, x, exponent, n)


cdef void pow_backward(float* dx, const float* dy, const float* x, float exponent, Py_ssize_t n,
                       bint accumulate) noexcept nogil:
    with_parameter_backward(POW_BACKWARD, simd.activation.pow_backward, dx, dy, x, exponent, n, accumulate)


# y [n] = cap tanh(x [n] / cap);  dx [n] (+)= dy (1 - (y / cap)^2)
cdef void softcap_forward(float* y, const float* x, float cap, Py_ssize_t n) noexcept nogil:
    with_parameter(SOFTCAP_FORWARD, simd.activation.softcap, y, x, cap, n)


cdef void softcap_backward(float* dx, const float* dy, const float* y, float cap, Py_ssize_t n,
                           bint accumulate) noexcept nogil:
    with_parameter_backward(SOFTCAP_BACKWARD, simd.activation.softcap_backward, dx, dy, y, cap, n, accumulate)


# y [n] = act(gate [n]) up [n];  dgate (+)= dy up act'(gate), dup (+)= dy act(gate); either may be NULL
cdef inline void gated_map(int kernel, gated_forward function, float* y, const float* gate, const float* up,
                           Py_ssize_t n) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        function(y + i * PIECE, gate + i * PIECE, up + i * PIECE, piece_size(n, PIECE, i))
    end_kernel(kernel, started, shape_of(n), 3 * n, 12 * n)


cdef inline void gated_slopes(int kernel, gated_backward slopes, float* dgate, float* dup, const float* dy,
                              const float* gate, const float* up, Py_ssize_t n, bint accumulate_gate,
                              bint accumulate_up) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        slopes(NULL if dgate == NULL else dgate + i * PIECE, NULL if dup == NULL else dup + i * PIECE, dy + i * PIECE,
               gate + i * PIECE, up + i * PIECE, piece_size(n, PIECE, i), accumulate_gate, accumulate_up)
    end_kernel(kernel, started, shape_of(n), 8 * n, 20 * n)


# act = silu
cdef void swiglu_forward(float* y, const float* gate, const float* up, Py_ssize_t n) noexcept nogil:
    gated_map(SWIGLU_FORWARD, simd.activation.swiglu, y, gate, up, n)


cdef void swiglu_backward(float* dgate, float* dup, const float* dy, const float* gate, const float* up, Py_ssize_t n,
                          bint accumulate_gate, bint accumulate_up) noexcept nogil:
    gated_slopes(SWIGLU_BACKWARD, simd.activation.swiglu_backward, dgate, dup, dy, gate, up, n, accumulate_gate,
                 accumulate_up)


# act = gelu of the tanh form
cdef void geglu_forward(float* y, const float* gate, const float* up, Py_ssize_t n) noexcept nogil:
    gated_map(GEGLU_FORWARD, simd.activation.geglu, y, gate, up, n)


cdef void geglu_backward(float* dgate, float* dup, const float* dy, const float* gate, const float* up, Py_ssize_t n,
                         bint accumulate_gate, bint accumulate_up) noexcept nogil:
    gated_slopes(GEGLU_BACKWARD, simd.activation.geglu_backward, dgate, dup, dy, gate, up, n, accumulate_gate,
                 accumulate_up)
