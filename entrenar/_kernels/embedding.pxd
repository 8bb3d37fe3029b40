from libc.stdint cimport int64_t

from entrenar._kernels.simd.source cimport weight_source

cdef void embedding_forward(float* y, const weight_source* table, const int64_t* tokens, Py_ssize_t n,
                            Py_ssize_t hidden) noexcept nogil
cdef void embedding_backward(float* dtable, const float* dy, const int64_t* tokens, Py_ssize_t n, Py_ssize_t vocabulary,
                             Py_ssize_t hidden, int64_t padding, bint accumulate) noexcept nogil
