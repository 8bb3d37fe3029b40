from entrenar._kernels.simd.matrix_view cimport matrix_view
from entrenar.autograd.tensor cimport Tensor

# Fill `s` from a weight (n, k): a Tensor or a QuantizedTensor; n and k are written too.
cdef int matrix_view_of(object weight, str op, matrix_view* s, Py_ssize_t* n, Py_ssize_t* k) except -1
cdef int check_scratch(int status, str op) except -1
# x as a float32 tensor whose last axis is k; ShapeError otherwise.
cdef Tensor checked_input(object x, str op, Py_ssize_t n, Py_ssize_t k)
