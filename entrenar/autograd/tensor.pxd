cdef enum:
    MAX_DIMS = 8

cdef enum:
    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2

cdef class Storage:
    """A block of the caching allocator, or memory that another object owns."""
    cdef char* memory
    cdef int size_class
    cdef bint readonly
    cdef object owner

cdef class Node:
    """One recorded operation: the nodes of its inputs, and the shape and the gradient of its output.

    A subclass has an attribute for each tensor that its backward needs; `release` lets go of all of them.
    """
    cdef tuple inputs         # a Node for each input, None for one that took no gradient when it was recorded
    cdef Tensor gradient
    cdef bint gradient_owned  # `gradient` is not shared: it may be added to in place
    cdef bint is_leaf
    cdef bint needs_grad
    cdef bint released
    cdef int ndim
    cdef Py_ssize_t dims[MAX_DIMS]
    cdef Py_ssize_t size
    cdef bint recomputes  # `recompute` works, and costs little beside saving the output
    cdef Tensor output    # what `recompute` made, until the node is released
    cdef unsigned long long sequence
    cdef unsigned long long walk
    cdef int backward(self, Tensor grad) except -1
    cdef Tensor recompute(self)
    cdef void release(self)

cdef class AccumulateGrad(Node):
    """Where a leaf's gradient is added up: its `gradient` is the leaf's `grad` and outlives every walk."""

cdef class Tensor:
    cdef float* data
    cdef readonly int ndim
    cdef int weight_type  # FLOAT32, BFLOAT16 or FLOAT16
    cdef bint needs_grad
    cdef unsigned int last_linear  # the newest linear whose value is only copied or added into this one; see checkpoint
    cdef Py_ssize_t dims[MAX_DIMS]
    cdef Py_ssize_t strides_bytes[MAX_DIMS]
    cdef readonly Py_ssize_t size
    cdef Storage storage
    cdef Node node  # what computed it, or the AccumulateGrad of a leaf that has or had a use for one, else None
    cdef object __weakref__

cdef Tensor new_tensor(int ndim, const Py_ssize_t* dims)
cdef Tensor new_like(Tensor t)
cdef Tensor new_gradient(Node node)
cdef AccumulateGrad leaf_node(Tensor t)
cdef void set_node_shape(Node node, Tensor out) noexcept
cdef Tensor new_vector(Py_ssize_t n)
cdef Tensor new_matrix(Py_ssize_t rows, Py_ssize_t cols)
cdef Tensor new_scalar(float value)
cdef Tensor alias(Tensor t)
cdef Tensor alias_as(Tensor t, int ndim, const Py_ssize_t* dims)
cdef Tensor as_tensor(object x)
cdef Tensor check_dtype(Tensor t, str op, str name)
cdef Tensor check_float32(Tensor t, str op, str name)
cdef object gradients_lock()
cdef void note_read(Tensor t) noexcept
cdef unsigned int unused_linear() noexcept
cdef void set_unused_linear(unsigned int number) noexcept
cdef bint same_shape(Tensor a, Tensor b) noexcept
cdef str shape_str(Tensor t)
