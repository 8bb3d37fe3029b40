cdef enum:
    MAX_DIMS = 8

cdef enum:
    FLOAT32 = 0
    BFLOAT16 = 1

cdef class Storage:
    """A block of the caching allocator, or memory that another object owns."""
    cdef char* memory
    cdef int size_class
    cdef bint readonly
    cdef object owner

cdef class Node:
    """One recorded operation: what it was computed from, what its backward needs, and the gradient of its output."""
    cdef tuple inputs
    cdef tuple saved
    cdef Tensor gradient
    cdef bint gradient_owned
    cdef bint released
    cdef bint recomputes  # `recompute` works, and costs little beside keeping the output
    cdef Tensor output    # what `recompute` made, until the node is released
    cdef unsigned long long sequence
    cdef unsigned long long walk
    cdef int backward(self, Tensor grad) except -1
    cdef Tensor recompute(self)
    cdef void release(self)

cdef class Tensor:
    cdef float* data
    cdef readonly int ndim
    cdef int kind  # FLOAT32 or BFLOAT16
    cdef bint needs_grad
    cdef bint gradient_owned
    cdef unsigned int product  # the newest linear whose value is only copied or added into this one; see checkpoint
    cdef Py_ssize_t dims[MAX_DIMS]
    cdef Py_ssize_t strides_bytes[MAX_DIMS]
    cdef readonly Py_ssize_t size
    cdef Storage storage
    cdef Node node
    cdef Tensor gradient
    cdef object __weakref__

cdef Tensor new_tensor(int ndim, const Py_ssize_t* dims)
cdef Tensor new_like(Tensor t)
cdef Tensor new_vector(Py_ssize_t n)
cdef Tensor new_matrix(Py_ssize_t rows, Py_ssize_t cols)
cdef Tensor new_scalar(float value)
cdef Tensor alias(Tensor t)
cdef Tensor alias_as(Tensor t, int ndim, const Py_ssize_t* dims)
cdef Tensor as_tensor(object x)
cdef Tensor check_dtype(Tensor t, str op, str name)
cdef Tensor check_float32(Tensor t, str op, str name)
cdef void note_read(Tensor t) noexcept
cdef unsigned int unread_product() noexcept
cdef void set_unread_product(unsigned int number) noexcept
cdef bint same_shape(Tensor a, Tensor b) noexcept
cdef str shape_str(Tensor t)
