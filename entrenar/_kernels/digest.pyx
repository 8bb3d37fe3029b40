"""Checksums of the bits of an array, the same for any number of threads: they are sums of integers."""
from cython.parallel cimport prange
from libc.stdint cimport int64_t, uint32_t

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport ceil_div, max, min, threads_for
from entrenar._kernels.profile cimport begin_kernel, end_kernel, register, shape_of

cdef enum:
    PIECES = 64     # that an array is cut into at most
    PIECE = 16384   # words of a piece at least
    GRAIN = 65536   # words worth a thread

cdef int DIGEST = register("digest")


# The sums of simd/digest.h over words [n]
cdef digest_sums digest(const uint32_t* words, Py_ssize_t n) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef digest_sums[PIECES] parts
    cdef digest_sums total = digest_sums(0, 0, 0)
    cdef Py_ssize_t size = max(PIECE, ceil_div(n, PIECES)), pieces = ceil_div(n, size), i
    for i in prange(pieces, schedule="static", num_threads=threads_for(n, GRAIN)):
        parts[i] = digest_sums(0, 0, 0)
        simd.digest.add(&parts[i], words + i * size, min(n - i * size, size), i * size)
    for i in range(pieces):
        total.plain += parts[i].plain
        total.weighted += parts[i].weighted
        total.mixed += parts[i].mixed
    end_kernel(DIGEST, started, shape_of(n), 0, 4 * n)
    return total
