"""Rotary position embedding (RoFormer, Su et al. 2021), half-split as in Hugging Face LLaMA checkpoints."""
from cython.parallel cimport prange
from libc.stdint cimport int64_t

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport threads_for
from entrenar._kernels.profile cimport begin_kernel, end_kernel, register, shape_of

cdef enum:
    GRAIN = 1 << 14  # floats

cdef int ROPE = register("rope")


cdef inline void rotate_token(float* y, const float* x, const float* cos, const float* sin, const int64_t* positions,
                              Py_ssize_t token, Py_ssize_t seq, Py_ssize_t heads, Py_ssize_t half,
                              Py_ssize_t rest, float sign, bint accumulate) noexcept nogil:
    cdef Py_ssize_t position = positions[token] if positions != NULL else token % seq
    cdef Py_ssize_t width = (2 * half + rest) * heads
    simd.rope.rotate(y + token * width, x + token * width, cos + position * half, sin + position * half, sign, heads,
                     half, rest, accumulate)


# x, y (tokens, heads, 2 half + rest); cos, sin (positions, half); positions (tokens) or NULL: token modulo seq.
# forward (sign = 1):   (y1, y2) = (x1 c - x2 s, x2 c + x1 s) with x1, x2 the first halves of a head; its rest is copied
# backward (sign = -1): the transposed rotation of the gradient
cdef void rope_rotate(float* y, const float* x, const float* cos, const float* sin, const int64_t* positions,
                      Py_ssize_t tokens, Py_ssize_t seq, Py_ssize_t heads, Py_ssize_t half, Py_ssize_t rest,
                      float sign, bint accumulate) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t token, values = tokens * heads * (2 * half + rest)
    for token in prange(tokens, schedule="static", num_threads=threads_for(values, GRAIN)):
        rotate_token(y, x, cos, sin, positions, token, seq, heads, half, rest, sign, accumulate)
    end_kernel(ROPE, started, shape_of(tokens, heads, 2 * half + rest), 6 * tokens * heads * half, 8 * values)
