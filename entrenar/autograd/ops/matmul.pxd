from entrenar._kernels.simd.source cimport weight_source
from entrenar.autograd.tensor cimport Tensor

# Fill `s` from a weight (n, k): a float32 or bfloat16 Tensor or a QuantizedTensor; n and k are written too.
cdef int weight_source_of(object weight, str op, weight_source* s, Py_ssize_t* n, Py_ssize_t* k) except -1
cdef int check_scratch(int status, str op) except -1
# x as a float32 tensor whose last axis is k; ShapeError otherwise.
cdef Tensor checked_input(object x, str op, Py_ssize_t n, Py_ssize_t k)
