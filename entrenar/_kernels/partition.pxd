# Every cut of work into pieces, the choice of threads for them, and the names of the scratch slots. No cut depends on
# the number of threads, so that the bits of a result do not either.
from entrenar._kernels.cpu cimport n_threads, scratch

cdef extern from "scratch.h" nogil:
    cdef enum:
        SCRATCH_PACKED_A
        SCRATCH_PACKED_B
        SCRATCH_ATTENTION
        SCRATCH_PARTIALS


cdef inline Py_ssize_t min(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a < b else b


cdef inline Py_ssize_t max(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a > b else b


cdef inline Py_ssize_t ceil_div(Py_ssize_t n, Py_ssize_t divisor) noexcept nogil:
    return (n + divisor - 1) // divisor


cdef inline Py_ssize_t round_up(Py_ssize_t n, Py_ssize_t multiple) noexcept nogil:
    return ceil_div(n, multiple) * multiple


cdef inline Py_ssize_t piece_size(Py_ssize_t n, Py_ssize_t piece, Py_ssize_t i) noexcept nogil:
    """Length of the i-th of the ceil_div(n, piece) pieces of n elements: `piece`, and what is left for the last one."""
    return min(n - i * piece, piece)


cdef inline Py_ssize_t bisect(const Py_ssize_t* first, size_t stride, Py_ssize_t count, Py_ssize_t job) noexcept nogil:
    """The last of `count` parts whose first job is not beyond `job`; the firsts are `stride` bytes apart, ascending."""
    cdef Py_ssize_t low = 0, high = count, middle
    while high - low > 1:
        middle = (low + high) // 2
        if (<const Py_ssize_t*> (<const char*> first + middle * stride))[0] <= job:
            low = middle
        else:
            high = middle
    return low


cdef inline int threads_for(Py_ssize_t work, Py_ssize_t grain) noexcept nogil:
    """Threads worth waking for `work` units when each should get at least `grain`; results never depend on it."""
    if n_threads == 1 or work < 2 * grain:
        return 1
    return <int> min(work // grain, n_threads)
