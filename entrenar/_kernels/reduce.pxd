cdef enum Reduction:
    SUM
    MAX

cdef int reduce_axis(Reduction kind, float* y, const float* x, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
                     double divisor, bint accumulate) noexcept nogil
