cdef void softmax_forward(float* y, const float* x, Py_ssize_t rows, Py_ssize_t n) noexcept nogil
cdef void softmax_backward(float* dx, const float* dy, const float* y, Py_ssize_t rows, Py_ssize_t n,
                           bint accumulate) noexcept nogil
cdef void log_softmax_forward(float* y, const float* x, Py_ssize_t rows, Py_ssize_t n) noexcept nogil
cdef void log_softmax_backward(float* dx, const float* dy, const float* y, Py_ssize_t rows, Py_ssize_t n,
                               bint accumulate) noexcept nogil
