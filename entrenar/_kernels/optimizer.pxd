from entrenar._kernels.simd.optimizer cimport adam_options, sgd_options

cdef void sgd_step(float* p, float* buffer, const float* g, Py_ssize_t n, const sgd_options* options) noexcept nogil
cdef void adam_step(float* p, float* m, float* v, const float* g, Py_ssize_t n,
                    const adam_options* options) noexcept nogil
cdef int sum_squares(double* total, const float* x, Py_ssize_t n) noexcept nogil
cdef void clamp(float* x, float limit, Py_ssize_t n) noexcept nogil
