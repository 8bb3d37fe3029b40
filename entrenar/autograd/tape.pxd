from entrenar.autograd.tensor cimport Node, Tensor

cdef bint ops_watched

cdef bint is_recording() noexcept
cdef bint wants_grad(Tensor t) noexcept
cdef object save_for_backward(Tensor x)
cdef Tensor saved_tensor(object saved)
cdef bint needs_output(Tensor out) noexcept
cdef Tensor record(Tensor out, Node node, tuple inputs)
cdef bint takes_grad(object node) noexcept
cdef Tensor grad_buffer(Node node, bint* accumulate)
cdef float* grad_pointer(Node node, bint* accumulate) except? NULL
cdef int add_grad(Node node, Tensor gradient) except -1
cdef int give_grad(Node node, Tensor gradient) except -1
cdef int tell_computed(Tensor out, str op, object weight) except -1


cdef inline Tensor computed(Tensor out, str op, object weight):
    """What an operation returns, shown to `watching_ops`; `weight` is what a layer is known by, or None."""
    if ops_watched:
        tell_computed(out, op, weight)
    return out
