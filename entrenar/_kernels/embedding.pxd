from libc.stdint cimport int64_t

from entrenar._kernels.simd.matrix_view cimport matrix_view

cdef void embedding_forward(float* y, const matrix_view* table, const int64_t* tokens, Py_ssize_t n,
                            Py_ssize_t hidden) noexcept nogil
cdef void embedding_backward(float* dtable, const float* dy, const int64_t* tokens, Py_ssize_t n, Py_ssize_t vocabulary,
                             Py_ssize_t hidden, int64_t padding, bint accumulate) noexcept nogil
