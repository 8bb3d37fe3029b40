from entrenar._kernels.simd.matrix_view cimport matrix_view

# An fp32 matrix as the source of an operand; `row_stride` in elements.
cdef matrix_view f32_view(const float* data, Py_ssize_t row_stride, Py_ssize_t columns) noexcept nogil

# A product of a shared left operand: c (m, n), contiguous, of the right operand b.
cdef struct gemm_operand_b:
    float* c
    const matrix_view* b
    Py_ssize_t n

# All return 0, or -1 where scratch memory is out; the scratch slots of packed A and packed B are used.
cdef int linear_forward(float* y, const float* x, const matrix_view* w,
                        Py_ssize_t m, Py_ssize_t n, Py_ssize_t k) noexcept nogil
cdef int grouped_linear_forward(const gemm_operand_b* bs, int count, const float* x, Py_ssize_t m,
                              Py_ssize_t k) noexcept nogil
cdef int linear_backward_input(float* dx, const float* dy, const matrix_view* w,
                               Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, bint accumulate) noexcept nogil
cdef int linear_backward_weight(float* dw, const float* dy, const float* x,
                                Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, bint accumulate) noexcept nogil
cdef int gemm(float* c, const matrix_view* a, bint a_transposed, const matrix_view* b, bint b_transposed,
              Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, bint accumulate) noexcept nogil

# Adapters y += scale (x A^T) B^T of a small rank r; for wide operands these pack nothing. -1 where scratch is out.
cdef int skinny_forward(float* y, float* h, const float* x, const float* a, const float* b, float scale,
                          Py_ssize_t m, Py_ssize_t n, Py_ssize_t k, Py_ssize_t r) noexcept nogil
cdef int skinny_backward(float* g, float* db, const float* dy, const float* h, const float* b, float scale,
                           Py_ssize_t m, Py_ssize_t n, Py_ssize_t r, bint accumulate) noexcept nogil
cdef int skinny_backward_a(float* da, const float* g, const float* x, Py_ssize_t m, Py_ssize_t k, Py_ssize_t r,
                                bint accumulate) noexcept nogil
cdef int skinny_backward_input(float* dx, const float* g, const float* a, Py_ssize_t m, Py_ssize_t k, Py_ssize_t r,
                                 bint accumulate) noexcept nogil
