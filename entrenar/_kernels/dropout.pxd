from libc.stdint cimport uint32_t, uint64_t

cdef void dropout_forward(float* y, const float* x, Py_ssize_t n, float p, uint64_t key, uint64_t stream,
                          bint accumulate) noexcept nogil
cdef void philox(uint32_t* words, const uint32_t* counter, const uint32_t* key) noexcept nogil
