"""Dropout whose mask is a function of (key, stream, element) and is drawn again in backward instead of stored."""
from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint32_t, uint64_t

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport ceil_div, piece_size, threads_for
from entrenar._kernels.profile cimport begin_kernel, end_kernel, register, shape_of

cdef enum:
    PIECE = 4096   # elements of a job, a multiple of PHILOX_GROUP
    GRAIN = 16384  # elements worth a thread

cdef int DROPOUT = register("dropout")


# y [n] = mask [n] * x [n] / (1 - p), mask[i] = 1 with probability 1 - p from Philox4x32-10 at (key, stream, i);
# 0 <= p <= 1. The backward is the same function on the gradient: dx = mask * dy / (1 - p).
cdef void dropout_forward(float* y, const float* x, Py_ssize_t n, float p, uint64_t key, uint64_t stream,
                          bint accumulate) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    cdef bint nothing_kept = p >= 1
    cdef uint32_t threshold = 0 if nothing_kept else <uint32_t> (<double> p * 4294967296.0)
    cdef float scale = 0 if nothing_kept else <float> (1 / (1 - <double> p))
    for i in prange(ceil_div(n, PIECE), schedule="static", num_threads=threads_for(n, GRAIN)):
        if not nothing_kept:
            simd.dropout.apply(y + i * PIECE, x + i * PIECE, piece_size(n, PIECE, i), i * PIECE, threshold, scale, key,
                               stream, accumulate)
        elif not accumulate:
            simd.elementwise.fill(y + i * PIECE, 0, piece_size(n, PIECE, i))
    end_kernel(DROPOUT, started, shape_of(n), n, 8 * n)


# words [4] = Philox4x32-10 of counter [4] under key [2]
cdef void philox(uint32_t* words, const uint32_t* counter, const uint32_t* key) noexcept nogil:
    simd.dropout.philox(words, counter, key)
