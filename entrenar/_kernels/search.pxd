# Which of several parts, numbered one after the other, holds a block or job.
cdef inline Py_ssize_t part_of(const Py_ssize_t* first, size_t stride, Py_ssize_t count, Py_ssize_t number) noexcept nogil:
    """The last part whose `first` number is not beyond `number`; the first one's is at `first`, the next `stride` bytes on."""
    cdef Py_ssize_t low = 0, high = count, middle
    while high - low > 1:
        middle = (low + high) // 2
        if (<const Py_ssize_t*> (<const char*> first + middle * stride))[0] <= number:
            low = middle
        else:
            high = middle
    return low
