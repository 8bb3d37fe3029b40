"""Work for measuring what the machine can do at most, done by the team of threads; whoever calls it takes the time.

The tier in use has the loops (simd/peak.c). observe/peak.py makes rates of them.
"""
from cython.parallel cimport prange

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport ceil_div, piece_size

cdef enum:
    BLOCK = 1 << 14  # floats of a job of a stream

RATES = ("fp32", "int16", "int8")  # multiply-adds
STREAMS = {"read": 1, "update": 3, "triad": 3}  # loops over arrays, by how often each float of one is moved


def multiply_adds(str kind, int threads, Py_ssize_t rounds):
    """Operations (a multiply-add is two) that `threads` threads did in `rounds` rounds; 0 where the tier has none."""
    cdef double (*spin)(Py_ssize_t rounds) noexcept nogil
    cdef double done = 0
    cdef int _, number = RATES.index(kind)
    spin = simd.peak.fp32 if number == 0 else simd.peak.int16 if number == 1 else simd.peak.int8
    if spin == NULL:
        return 0.0
    for _ in prange(threads, schedule="static", num_threads=threads, nogil=True):
        done += spin(rounds)
    return done


cdef double block(int kind, float* x, const float* y, const float* z, Py_ssize_t n, Py_ssize_t i) noexcept nogil:
    cdef Py_ssize_t at = i * BLOCK, count = piece_size(n, BLOCK, i)
    if kind == 0:
        return simd.peak.read(y + at, count)
    if kind == 1:
        simd.peak.update(x + at, y + at, count)
    else:
        simd.peak.triad(x + at, y + at, z + at, count)
    return 0


def stream(str kind, int threads, size_t x, size_t y, size_t z, Py_ssize_t n):
    """Run a loop of STREAMS over arrays of n floats (a multiple of 64) at the addresses; the bytes that it moved.

    `read` uses y alone, `update` x and y.
    """
    cdef int number = list(STREAMS).index(kind)
    cdef double sink = 0
    cdef Py_ssize_t i
    for i in prange(ceil_div(n, BLOCK), schedule="static", num_threads=threads, nogil=True):
        sink += block(number, <float*> x, <const float*> y, <const float*> z, n, i)
    return 0.0 if sink == 1e300 else 4.0 * n * STREAMS[kind]  # the sum is used: no loop is left out
