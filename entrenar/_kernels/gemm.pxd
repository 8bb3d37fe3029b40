from entrenar._kernels.simd.gemm cimport gemm_operand_b
from entrenar._kernels.simd.matrix_view cimport matrix_view

# How A and B are stored, as BLAS says it: N as they are multiplied, A (m, k) and B (k, n); T transposed.
cdef enum gemm_layout:
    NN
    NT
    TN

# All return 0, or -1 where scratch memory is out; they use the scratch slots of packed A and packed B.
cdef int gemm(gemm_layout layout, float* c, const matrix_view* a, const matrix_view* b, Py_ssize_t m, Py_ssize_t n,
              Py_ssize_t k, bint accumulate) noexcept nogil
cdef int linear_forward(float* y, const float* x, const matrix_view* w, Py_ssize_t m, Py_ssize_t n,
                        Py_ssize_t k) noexcept nogil
cdef int grouped_linear_forward(const gemm_operand_b* b, int count, const float* x, Py_ssize_t m,
                                Py_ssize_t k) noexcept nogil
cdef int linear_backward_input(float* dx, const float* dy, const matrix_view* w, Py_ssize_t m, Py_ssize_t n,
                               Py_ssize_t k, bint accumulate) noexcept nogil
cdef int linear_backward_weight(float* dw, const float* dy, const float* x, Py_ssize_t m, Py_ssize_t n,
                                Py_ssize_t k, bint accumulate) noexcept nogil
