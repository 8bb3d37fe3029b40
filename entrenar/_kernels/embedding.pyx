"""Rows of a table by token id, and their gradients."""
from cython.parallel cimport prange
from libc.stdint cimport int64_t
from libc.string cimport memset

from entrenar._kernels.cpu cimport simd
from entrenar._kernels.partition cimport ceil_div, min, piece_size, threads_for
from entrenar._kernels.profile cimport begin_kernel, end_kernel, register, shape_of
from entrenar._kernels.simd.matrix_view cimport matrix_view

cdef enum:
    GRAIN = 16384  # elements worth a thread
    STRIPE = 64    # columns of a job in backward
    ROWS = 256     # of the table that one job clears

cdef int EMBEDDING_FORWARD = register("embedding_forward")
cdef int EMBEDDING_BACKWARD = register("embedding_backward")


cdef void add_stripe(float* dtable, const float* dy, const int64_t* tokens, Py_ssize_t n, Py_ssize_t hidden,
                     int64_t padding, Py_ssize_t first) noexcept nogil:
    cdef Py_ssize_t i, columns = min(STRIPE, hidden - first)
    cdef float* row
    for i in range(n):
        if tokens[i] == padding:
            continue
        row = dtable + tokens[i] * hidden + first
        simd.elementwise.add(row, row, dy + i * hidden + first, columns)


# y [n][hidden] = table[tokens [n]]
# dtable [vocabulary][hidden] (+)= rows of dy at their tokens but `padding`'s (-1: none);
# a job owns columns, so repeated tokens add in order
cdef void embedding_forward(float* y, const matrix_view* table, const int64_t* tokens, Py_ssize_t n,
                            Py_ssize_t hidden) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    for i in prange(n, schedule="static", num_threads=threads_for(n * hidden, GRAIN)):
        simd.weight_types[table.type].kernels.dequantize_row(table, tokens[i], 0, hidden, y + i * hidden)
    end_kernel(EMBEDDING_FORWARD, started, shape_of(n, hidden), 0, 8 * n * hidden)


cdef void embedding_backward(float* dtable, const float* dy, const int64_t* tokens, Py_ssize_t n, Py_ssize_t vocabulary,
                             Py_ssize_t hidden, int64_t padding, bint accumulate) noexcept nogil:
    cdef int64_t started = begin_kernel()
    cdef Py_ssize_t i
    if not accumulate:
        for i in prange(ceil_div(vocabulary, ROWS), schedule="static",
                        num_threads=threads_for(vocabulary * hidden, GRAIN)):
            memset(dtable + i * ROWS * hidden, 0, piece_size(vocabulary, ROWS, i) * hidden * sizeof(float))
    for i in prange(ceil_div(hidden, STRIPE), schedule="static", num_threads=threads_for(n * hidden, GRAIN)):
        add_stripe(dtable, dy, tokens, n, hidden, padding, i * STRIPE)
    end_kernel(EMBEDDING_BACKWARD, started, shape_of(n, hidden), n * hidden,
               12 * n * hidden + (0 if accumulate else 4 * vocabulary * hidden))
