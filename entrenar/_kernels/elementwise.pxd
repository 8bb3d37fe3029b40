cdef enum:
    PLAN_AXES = 8  # as many axes as a tensor has

# Two broadcast operands after axes with proportional strides are merged: runs of `inner` floats in each operand
# (step_a, step_b: 1 for a contiguous run, 0 for one repeated float), and strides of the axes around, outermost first.
cdef struct Broadcast:
    int axes
    Py_ssize_t dims[PLAN_AXES]
    Py_ssize_t strides_a[PLAN_AXES]
    Py_ssize_t strides_b[PLAN_AXES]
    Py_ssize_t outer
    Py_ssize_t inner
    bint step_a
    bint step_b

cdef enum Binary:
    ADD
    SUB
    MUL
    DIV
    EQUAL

cdef void plan_broadcast(Broadcast* plan, int ndim, const Py_ssize_t* dims, const Py_ssize_t* strides_a,
                         const Py_ssize_t* strides_b) noexcept nogil
cdef void binary(Binary op, float* y, const float* a, const float* b, const Broadcast* plan,
                 bint accumulate) noexcept nogil
cdef void scale(float* y, const float* x, float factor, Py_ssize_t n, bint accumulate) noexcept nogil
cdef void add_to(float* y, const float* x, Py_ssize_t n) noexcept nogil
cdef void fill(float* y, float value, Py_ssize_t n) noexcept nogil
