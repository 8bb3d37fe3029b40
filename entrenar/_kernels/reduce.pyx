"""Sum and maximum over one axis. Fixed blocks are reduced in order, so the number of threads never changes a bit."""
from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.math cimport INFINITY
from libc.string cimport memcpy

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport SCRATCH_PARTIALS, ceil_div, max, min, scratch, threads_for
from entrenar._kernels.profile cimport begin_kernel, end_kernel, register, shape_of

cdef enum:
    CHUNK = 65536  # floats of a contiguous run that one job reduces
    ROWS = 1024    # rows that one job reduces
    TILE = 512     # columns that one job reduces
    GRAIN = 65536  # floats worth a thread

cdef int REDUCE = register("reduce")


cdef inline double merge(Reduction kind, double total, double part) noexcept nogil:
    if kind == SUM:
        return total + part
    return part if part > total or part != part else total  # NaN propagates


cdef void finish(Reduction kind, float* y, const double* parts, Py_ssize_t chunks, Py_ssize_t stride, Py_ssize_t n,
                 double divisor, bint accumulate) noexcept nogil:
    """y[i] (+)= reduction of parts[0][i], parts[1][i], ... / divisor, for i < n"""
    cdef Py_ssize_t i, chunk
    cdef double total
    for i in range(n):
        total = parts[i]
        for chunk in range(1, chunks):
            total = merge(kind, total, parts[chunk * stride + i])
        y[i] = y[i] + <float> (total / divisor) if accumulate else <float> (total / divisor)


cdef double reduce_run(Reduction kind, const float* x, Py_ssize_t n) noexcept nogil:
    return simd.reduce.sum(x, n) if kind == SUM else simd.reduce.max(x, n)


cdef void reduce_tile(Reduction kind, double* acc, const float* x, Py_ssize_t rows, Py_ssize_t stride,
                      Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        acc[i] = 0 if kind == SUM else -INFINITY
    if kind == SUM:
        simd.reduce.sum_rows(acc, x, rows, stride, n)
    else:
        simd.reduce.max_rows(acc, x, rows, stride, n)


cdef int reduce_runs(Reduction kind, float* y, const float* x, Py_ssize_t outer, Py_ssize_t n, double divisor,
                     bint accumulate) noexcept nogil:
    """Each y[o] from the contiguous run x[o, :]."""
    cdef Py_ssize_t chunks = max(1, ceil_div(n, CHUNK)), i, start
    cdef int threads = threads_for(outer * n, GRAIN)
    cdef double part
    cdef double* parts = NULL
    if chunks == 1:
        for i in prange(outer, schedule="static", num_threads=threads):
            part = reduce_run(kind, x + i * n, n)
            finish(kind, y + i, &part, 1, 1, 1, divisor, accumulate)
        return 0
    parts = <double*> scratch(SCRATCH_PARTIALS, outer * chunks * sizeof(double))
    if parts == NULL:
        return -1
    for i in prange(outer * chunks, schedule="static", num_threads=threads):
        start = i % chunks * CHUNK
        parts[i] = reduce_run(kind, x + i // chunks * n + start, min(n - start, CHUNK))
    for i in range(outer):
        finish(kind, y + i, parts + i * chunks, chunks, 1, 1, divisor, accumulate)
    return 0


cdef void tile_job(Reduction kind, float* y, double* parts, const float* x, Py_ssize_t n, Py_ssize_t inner,
                   Py_ssize_t chunks, Py_ssize_t tiles, Py_ssize_t job, double divisor, bint accumulate) noexcept nogil:
    """Columns of tile job % tiles, rows of chunk job / tiles % chunks, of outer index job / tiles / chunks."""
    cdef Py_ssize_t column = job % tiles * TILE, chunk = job // tiles % chunks, o = job // tiles // chunks
    cdef Py_ssize_t width = min(inner - column, TILE), row = chunk * ROWS
    cdef double acc[TILE]
    reduce_tile(kind, acc, x + (o * n + row) * inner + column, min(n - row, ROWS), inner, width)
    if chunks == 1:
        finish(kind, y + o * inner + column, acc, 1, 0, width, divisor, accumulate)
    else:
        memcpy(parts + (o * chunks + chunk) * inner + column, acc, width * sizeof(double))


cdef int reduce_rows(Reduction kind, float* y, const float* x, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
                     double divisor, bint accumulate) noexcept nogil:
    """Each y[o, :] from the rows x[o, 0, :], x[o, 1, :], ..."""
    cdef Py_ssize_t chunks = max(1, ceil_div(n, ROWS)), tiles = ceil_div(inner, TILE), i
    cdef double* parts = NULL
    if chunks > 1:
        parts = <double*> scratch(SCRATCH_PARTIALS, outer * chunks * inner * sizeof(double))
        if parts == NULL:
            return -1
    for i in prange(outer * chunks * tiles, schedule="static", num_threads=threads_for(outer * n * inner, GRAIN)):
        tile_job(kind, y, parts, x, n, inner, chunks, tiles, i, divisor, accumulate)
    if chunks > 1:
        for i in range(outer):
            finish(kind, y + i * inner, parts + i * chunks * inner, chunks, inner, inner, divisor, accumulate)
    return 0


# y [outer, inner] = reduction over the middle axis of x [outer, n, inner], divided by `divisor` (1: sum, n: mean).
# Returns -1 where scratch memory is out. The backward of a sum repeats the gradient along the axis: elementwise.binary
# with stride 0; that of a maximum repeats it where x equals the maximum.
cdef int reduce_axis(Reduction kind, float* y, const float* x, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
                     double divisor, bint accumulate) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef int status = 0
    if inner == 1:
        status = reduce_runs(kind, y, x, outer, n, divisor, accumulate)
    elif outer and inner:
        status = reduce_rows(kind, y, x, outer, n, inner, divisor, accumulate)
    end_kernel(REDUCE, started, shape_of(outer, n, inner), outer * n * inner, 4 * outer * (n + 1) * inner)
    return status
