from entrenar._kernels.simd.gemm cimport gemm_operand_b
from entrenar._kernels.simd.matrix_view cimport matrix_view

# y (m, n) (+)= x (m, k) W (n, k)^T for any m > 0, GEMV_PASS rows at a time. Both return 0, or -1 where scratch memory
# is out; they use the scratch slot of packed A.
cdef int gemv(float* y, const float* x, const matrix_view* w, Py_ssize_t m, Py_ssize_t n, Py_ssize_t k,
              bint accumulate) noexcept nogil
cdef int grouped_gemv(const gemm_operand_b* b, int count, const float* x, Py_ssize_t m, Py_ssize_t k,
                      bint accumulate) noexcept nogil
