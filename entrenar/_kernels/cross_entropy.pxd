from libc.stdint cimport int64_t

cdef void cross_entropy_forward(float* loss, float* lse, const float* logits, const int64_t* targets, Py_ssize_t rows,
                                Py_ssize_t vocabulary, int64_t ignore_index) noexcept nogil
cdef void cross_entropy_backward(float* dlogits, const float* logits, const float* lse, const int64_t* targets,
                                 const float* scale, Py_ssize_t scale_stride, Py_ssize_t rows, Py_ssize_t vocabulary,
                                 int64_t ignore_index, bint accumulate) noexcept nogil
