"""sum, mean and max along axes. Sums accumulate in float64; the same bits for any number of threads."""
from entrenar._kernels.elementwise cimport DIV, EQUAL, MUL, Binary, Broadcast, binary, plan_broadcast
from entrenar._kernels.reduce cimport MAX, SUM, Reduction, reduce_axis
from entrenar.autograd.tape cimport computed, grad_buffer, record, takes_grad, wants_grad
from entrenar.autograd.arguments cimport checked_flag
from entrenar.autograd.tensor cimport (
    MAX_DIMS, Node, Tensor, alias, as_tensor, check_float32, new_like, new_tensor, new_vector, shape_str,
)

from entrenar.errors import MemoryBudgetError, ShapeError


cdef int _reduce(Reduction kind, float* y, const float* x, Py_ssize_t outer, Py_ssize_t n, Py_ssize_t inner,
                 double divisor, bint accumulate) except -1:
    cdef int status
    if outer == 0 or inner == 0:
        return 0  # however long the reduced axis is
    with nogil:
        status = reduce_axis(kind, y, x, outer, n, inner, divisor, accumulate)
    if status:
        raise MemoryBudgetError("A reduction found no memory for its partial sums: the machine is out of memory.")
    return 0


cdef int reduce_axes(Reduction kind, float* y, Tensor x, unsigned int reduced, double divisor,
                     bint accumulate) except -1:
    """y (+)= reduction of x over the axes whose bit is set in `reduced`, divided by `divisor`."""
    cdef Py_ssize_t[MAX_DIMS] sizes  # neighbouring axes that are both reduced, or both not, are one group
    cdef bint[MAX_DIMS] gone
    cdef int groups = 0, i, j
    cdef Py_ssize_t outer, inner
    cdef const float* source = x.data
    cdef Tensor part = None, _previous = None
    for i in range(x.ndim):
        if x.dims[i] == 1:
            continue
        if groups and gone[groups - 1] == <bint> (reduced >> i & 1):
            sizes[groups - 1] *= x.dims[i]
        else:
            sizes[groups] = x.dims[i]
            gone[groups] = reduced >> i & 1
            groups += 1
    while groups > 3 or (groups == 3 and gone[0]):  # more than one reduced group: the last one goes first
        i = groups - 1 if gone[groups - 1] else groups - 2
        outer = 1
        inner = sizes[groups - 1] if i == groups - 2 else 1
        for j in range(i):
            outer *= sizes[j]
        _previous = part  # the input of this pass stays allocated through it
        part = new_vector(outer * inner)
        _reduce(kind, part.data, source, outer, sizes[i], inner, 1, False)
        source = part.data
        sizes[i - 1] *= inner
        groups = i
    if groups == 0 or (groups == 1 and not gone[0]):
        return _reduce(kind, y, source, 1, 1, sizes[0] if groups else 1, divisor, accumulate)
    i = 0 if gone[0] else 1
    return _reduce(kind, y, source, sizes[0] if i else 1, sizes[i], sizes[i + 1] if i + 1 < groups else 1, divisor,
                   accumulate)


cdef int sum_to(Node input, Tensor gradient, double divisor) except -1:
    """Add to `input`'s gradient that of its broadcast form: summed over the repeated axes, divided by `divisor`."""
    cdef bint accumulate
    cdef unsigned int reduced = 0
    cdef int i, lead = gradient.ndim - input.ndim
    cdef Tensor target
    for i in range(gradient.ndim):
        if i < lead or input.dims[i - lead] != gradient.dims[i]:
            reduced |= <unsigned int> 1 << i
    target = grad_buffer(input, &accumulate)
    return reduce_axes(SUM, target.data, gradient, reduced, divisor, accumulate)


cdef unsigned int _axes_mask(Tensor x, object axis, str op) except? 0:
    cdef unsigned int mask = 0
    cdef long long i
    if axis is None:
        return (<unsigned int> 1 << x.ndim) - 1
    for item in axis if isinstance(axis, (tuple, list)) else (axis,):
        try:
            i = item.__index__()
        except (AttributeError, TypeError, OverflowError):
            raise ShapeError(f"{op}: axis must be None, an integer or a tuple of integers, not {axis!r}.") from None
        if not -x.ndim <= i < x.ndim:
            raise ShapeError(f"{op}: axis {i} lies outside shape {shape_str(x)}, which has {x.ndim} axes.")
        i = i + x.ndim if i < 0 else i
        if mask >> i & 1:
            raise ShapeError(f"{op}: axis {i} is listed twice in {axis!r}.")
        mask |= <unsigned int> 1 << i
    return mask


cdef Tensor _new_reduced(Tensor x, unsigned int mask, bint keepdims):
    cdef Py_ssize_t[MAX_DIMS] dims
    cdef int ndim = 0, i
    for i in range(x.ndim):
        if mask >> i & 1 and not keepdims:
            continue
        dims[ndim] = 1 if mask >> i & 1 else x.dims[i]
        ndim += 1
    return new_tensor(ndim, dims)


cdef Py_ssize_t _count(Tensor x, unsigned int mask) noexcept:
    cdef Py_ssize_t count = 1
    cdef int i
    for i in range(x.ndim):
        if mask >> i & 1:
            count *= x.dims[i]
    return count


cdef int _expand(Binary op, Tensor target, Tensor full, Tensor small, unsigned int mask, bint accumulate) except -1:
    """target (+)= full op small, where `small` repeats along the axes of `mask`; `full` may be a single number."""
    cdef Py_ssize_t[MAX_DIMS] full_strides
    cdef Py_ssize_t[MAX_DIMS] small_strides
    cdef Py_ssize_t full_stride = 1, small_stride = 1
    cdef Broadcast plan
    cdef int i
    for i in range(target.ndim - 1, -1, -1):
        full_strides[i] = 0 if full.ndim == 0 else full_stride
        full_stride *= target.dims[i]
        small_strides[i] = 0 if mask >> i & 1 else small_stride
        if not mask >> i & 1:
            small_stride *= target.dims[i]
    with nogil:
        plan_broadcast(&plan, target.ndim, target.dims, small_strides, full_strides)
        binary(op, target.data, small.data, full.data, &plan, accumulate)
    return 0


cdef class SumNode(Node):
    cdef unsigned int mask
    cdef Tensor divisor

    cdef int backward(self, Tensor grad) except -1:
        cdef bint accumulate
        if not takes_grad(self.inputs[0]):
            return 0
        cdef Tensor dx = grad_buffer(self.inputs[0], &accumulate)
        return _expand(DIV, dx, self.divisor, grad, self.mask, accumulate)


cdef class MaxNode(Node):
    cdef unsigned int mask
    cdef Tensor x
    cdef Tensor y

    cdef int backward(self, Tensor grad) except -1:
        cdef bint accumulate
        if not takes_grad(self.inputs[0]):
            return 0
        cdef Tensor x = self.x, out = self.y
        cdef Tensor ties = new_like(x), counts = new_like(out), share = new_like(out), dx
        cdef Broadcast plan
        cdef Py_ssize_t one = 1
        _expand(EQUAL, ties, x, out, self.mask, False)
        reduce_axes(SUM, counts.data, ties, self.mask, 1, False)
        with nogil:
            plan_broadcast(&plan, 1, &out.size, &one, &one)
            binary(DIV, share.data, grad.data, counts.data, &plan, False)
        dx = grad_buffer(self.inputs[0], &accumulate)
        return _expand(MUL, dx, ties, share, self.mask, accumulate)


cdef Tensor _sum(object x, object axis, object keepdims, str op, bint mean):
    cdef Tensor a = check_float32(as_tensor(x), op, "x")
    cdef unsigned int mask = _axes_mask(a, axis, op)
    cdef double divisor = _count(a, mask) if mean else 1
    cdef Tensor out = _new_reduced(a, mask, checked_flag(keepdims, op, "keepdims"))
    cdef SumNode node
    reduce_axes(SUM, out.data, a, mask, divisor, False)
    if wants_grad(a):
        node = SumNode.__new__(SumNode)
        node.mask = mask
        node.divisor = as_tensor(divisor)
        record(out, node, (a,))
    return computed(out, op, None)


def sum(x, axis=None, keepdims=False):
    """The sum of x over `axis`: None (all axes), an integer, or a tuple of integers; negative ones count from the end.

    Reduced axes go, or stay with length 1 where `keepdims`. The backward repeats the gradient along them. Error about
    one ulp of float32 at any length. Raises ShapeError for an axis that x does not have.
    """
    return _sum(x, axis, keepdims, "sum", False)


def mean(x, axis=None, keepdims=False):
    """The mean of x over `axis` (see `sum`); NaN where it averages nothing."""
    return _sum(x, axis, keepdims, "mean", True)


def max(x, axis=None, keepdims=False):
    """The maximum of x over `axis` (see `sum`); NaN where any element is NaN.

    The gradient goes to the elements that equal the maximum, shared evenly among ties, as in torch.amax. Raises
    ShapeError for an axis that x does not have or that is empty.
    """
    cdef Tensor a = check_float32(as_tensor(x), "max", "x"), out
    cdef unsigned int mask = _axes_mask(a, axis, "max")
    cdef MaxNode node
    if _count(a, mask) == 0:
        raise ShapeError(f"max: shape {shape_str(a)} has nothing along axis {axis!r} to take a maximum of.")
    out = _new_reduced(a, mask, checked_flag(keepdims, "max", "keepdims"))
    reduce_axes(MAX, out.data, a, mask, 1, False)
    if wants_grad(a):
        node = MaxNode.__new__(MaxNode)
        node.mask = mask
        node.x, node.y = a, alias(out)
        record(out, node, (a,))
    return computed(out, "max", None)
