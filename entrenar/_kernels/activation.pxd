from entrenar._kernels.simd.activation cimport activation_backward, activation_forward

cdef void map_forward(activation_forward function, float* y, const float* x, Py_ssize_t n) noexcept nogil
cdef void map_backward(activation_backward slope, float* dx, const float* dy, const float* saved, Py_ssize_t n,
                       bint accumulate) noexcept nogil
cdef void pow_forward(float* y, const float* x, float exponent, Py_ssize_t n) noexcept nogil
cdef void pow_backward(float* dx, const float* dy, const float* x, float exponent, Py_ssize_t n,
                       bint accumulate) noexcept nogil
cdef void swiglu_forward(float* y, const float* gate, const float* up, Py_ssize_t n) noexcept nogil
cdef void swiglu_backward(float* dgate, float* dup, const float* dy, const float* gate, const float* up, Py_ssize_t n,
                          bint accumulate_gate, bint accumulate_up) noexcept nogil
cdef void geglu_forward(float* y, const float* gate, const float* up, Py_ssize_t n) noexcept nogil
cdef void geglu_backward(float* dgate, float* dup, const float* dy, const float* gate, const float* up, Py_ssize_t n,
                         bint accumulate_gate, bint accumulate_up) noexcept nogil
cdef void softcap_forward(float* y, const float* x, float cap, Py_ssize_t n) noexcept nogil
cdef void softcap_backward(float* dx, const float* dy, const float* y, float cap, Py_ssize_t n,
                           bint accumulate) noexcept nogil
