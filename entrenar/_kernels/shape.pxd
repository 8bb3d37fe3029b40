cdef void strided_copy(float* y, const Py_ssize_t* strides_y, const float* x, const Py_ssize_t* strides_x, int ndim,
                       const Py_ssize_t* dims, bint accumulate) noexcept nogil
