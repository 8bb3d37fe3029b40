from libc.stdint cimport int64_t

cdef void rope_rotate(float* y, const float* x, const float* cos, const float* sin, const int64_t* positions,
                      Py_ssize_t tokens, Py_ssize_t seq, Py_ssize_t heads, Py_ssize_t half, Py_ssize_t rest,
                      float sign, bint accumulate) noexcept nogil
