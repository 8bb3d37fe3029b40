from entrenar._kernels.reduce cimport Reduction
from entrenar.autograd.tensor cimport Node, Tensor

cdef int reduce_axes(Reduction kind, float* y, Tensor x, unsigned int reduced, double divisor,
                     bint accumulate) except -1
cdef int sum_to(Node input, Tensor gradient, double divisor) except -1
