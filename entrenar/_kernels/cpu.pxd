from entrenar._kernels.simd.simd cimport simd_table

# The table of the tier in use. Read through the pointer at every call: set_tier changes it.
cdef const simd_table* simd

cdef int n_threads  # that kernels use at most (partition.threads_for)
cdef void* scratch(int slot, size_t nbytes) noexcept nogil

cdef int matmul_format  # GEMM_FP32, GEMM_INT16 or GEMM_INT8: what products are asked to use
