cdef void rms_norm_forward(float* y, float* rstd, const float* x, const float* w, Py_ssize_t rows, Py_ssize_t dim,
                           float eps) noexcept nogil
cdef int rms_norm_backward(float* dx, float* dw, const float* dy, const float* x, const float* w, const float* rstd,
                           Py_ssize_t rows, Py_ssize_t dim, bint accumulate_x, bint accumulate_w) noexcept nogil
cdef void layer_norm_forward(float* y, float* mean, float* rstd, const float* x, const float* w, const float* b,
                             Py_ssize_t rows, Py_ssize_t dim, float eps) noexcept nogil
cdef int layer_norm_backward(float* dx, float* dw, float* db, const float* dy, const float* x, const float* w,
                             const float* mean, const float* rstd, Py_ssize_t rows, Py_ssize_t dim,
                             bint accumulate_x, bint accumulate_w, bint accumulate_b) noexcept nogil
