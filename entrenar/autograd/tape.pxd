from entrenar.autograd.tensor cimport Node, Tensor

cdef bint is_recording() noexcept
cdef bint wants_grad(Tensor t) noexcept
cdef object save_for_backward(Tensor x)
cdef Tensor saved_tensor(object saved)
cdef bint leaves_out_product(Tensor out) noexcept
cdef Tensor record(Tensor out, Node node, tuple inputs, tuple saved)
cdef Tensor grad_buffer(Tensor input, bint* accumulate)
cdef float* grad_pointer(Tensor input, bint* accumulate) except? NULL
cdef int add_grad(Tensor input, Tensor gradient) except -1
cdef int give_grad(Tensor input, Tensor gradient) except -1
