"""add, sub, mul, div and neg, with NumPy's broadcasting. Gradients are summed over the axes that were broadcast."""
from libc.string cimport memcmp

from entrenar._kernels.elementwise cimport ADD, DIV, MUL, SUB, Binary, Broadcast, binary, plan_broadcast, scale
from entrenar.autograd.ops.reduce cimport sum_to
from entrenar.autograd.tape cimport add_grad, computed, grad_buffer, record, takes_grad, wants_grad
from entrenar.autograd.tensor cimport MAX_DIMS, Node, Tensor, as_tensor, check_dtype, check_float32, new_like, \
    new_tensor, same_shape, shape_str

from entrenar.errors import ShapeError


cdef void _strides(Tensor t, int ndim, Py_ssize_t* strides) noexcept:
    """t's strides in floats, right-aligned to `ndim` axes; 0 where t repeats."""
    cdef Py_ssize_t stride = 1
    cdef int i, lead = ndim - t.ndim
    for i in range(ndim - 1, -1, -1):
        strides[i] = 0 if i < lead or t.dims[i - lead] == 1 else stride
        if i >= lead:
            stride *= t.dims[i - lead]


cdef void _apply(Binary op, Tensor out, Tensor a, Tensor b, bint accumulate) noexcept:
    """out (+)= a op b, both broadcast to out's shape"""
    cdef Py_ssize_t[MAX_DIMS] strides_a
    cdef Py_ssize_t[MAX_DIMS] strides_b
    cdef Broadcast plan
    _strides(a, out.ndim, strides_a)
    _strides(b, out.ndim, strides_b)
    with nogil:
        plan_broadcast(&plan, out.ndim, out.dims, strides_a, strides_b)
        binary(op, out.data, a.data, b.data, &plan, accumulate)


cdef void add_rows(Tensor out, Tensor row) noexcept:
    """out (..., n) += row (n,), in place, without the graph"""
    _apply(ADD, out, out, row, False)


cdef Tensor _new_broadcast(Tensor a, Tensor b, str op):
    cdef Py_ssize_t[MAX_DIMS] dims
    cdef Py_ssize_t m, n
    cdef int i, ndim = a.ndim if a.ndim > b.ndim else b.ndim
    if same_shape(a, b):
        return new_like(a)
    for i in range(1, ndim + 1):
        m = a.dims[a.ndim - i] if i <= a.ndim else 1
        n = b.dims[b.ndim - i] if i <= b.ndim else 1
        if m != n and m != 1 and n != 1:
            raise ShapeError(f"{op}: shapes {shape_str(a)} and {shape_str(b)} do not broadcast: axis {-i} has "
                             f"lengths {m} and {n}.")
        dims[ndim - i] = n if m == 1 else m
    return new_tensor(ndim, dims)


cdef class BinaryNode(Node):
    cdef Binary op
    cdef Tensor a  # a factor is saved only where the other operand takes a gradient
    cdef Tensor b

    cdef int backward(self, Tensor grad) except -1:
        cdef Node of_a = self.inputs[0], of_b = self.inputs[1]
        cdef Tensor quotient, divisor
        if self.op == ADD or self.op == SUB:
            if takes_grad(of_a):
                _pass_on(of_a, grad, 1)
            if takes_grad(of_b):
                _pass_on(of_b, grad, 1 if self.op == ADD else -1)
            return 0
        if takes_grad(of_a):  # d(a b)/da = b, d(a / b)/da = 1 / b
            _send(of_a, self.op, grad, self.b)
        if not takes_grad(of_b):
            return 0
        if self.op == MUL:
            _send(of_b, MUL, grad, self.a)
        else:  # d(a / b)/db = -(a / b) / b
            divisor = self.b
            quotient = new_like(grad)
            _apply(DIV, quotient, self.a, divisor, False)
            _apply(DIV, quotient, quotient, divisor, False)
            _apply(MUL, quotient, quotient, grad, False)
            _pass_on(of_b, quotient, -1)
        return 0


cdef bint _has_shape(Node input, Tensor t) noexcept:
    return input.ndim == t.ndim and memcmp(input.dims, t.dims, t.ndim * sizeof(Py_ssize_t)) == 0


cdef int _pass_on(Node input, Tensor gradient, int sign) except -1:
    """Add `sign` * gradient to that of `input`, summed over the axes along which it was broadcast."""
    cdef bint accumulate
    cdef Tensor target
    if not _has_shape(input, gradient):
        return sum_to(input, gradient, sign)
    if sign == 1:
        return add_grad(input, gradient)
    target = grad_buffer(input, &accumulate)
    with nogil:
        scale(target.data, gradient.data, -1, gradient.size, accumulate)
    return 0


cdef int _send(Node input, Binary op, Tensor grad, Tensor other) except -1:
    """Add (grad op other) to the gradient of `input`, summed over the axes along which it was broadcast."""
    cdef bint accumulate
    cdef Tensor target
    if _has_shape(input, grad):
        target = grad_buffer(input, &accumulate)
        _apply(op, target, grad, other, accumulate)
        return 0
    target = new_like(grad)
    _apply(op, target, grad, other, False)
    return sum_to(input, target, 1)


cdef class NegNode(Node):
    cdef int backward(self, Tensor grad) except -1:
        return _pass_on(self.inputs[0], grad, -1) if takes_grad(self.inputs[0]) else 0


cdef Tensor _binary(Binary op, object x, object y, str name):
    cdef Tensor a = as_tensor(x), b = as_tensor(y), out
    cdef BinaryNode node
    if op == ADD or op == SUB:  # their backward needs neither operand, so their values may be left out
        check_dtype(a, name, "the first operand")
        check_dtype(b, name, "the second operand")
        out = _new_broadcast(a, b, name)
        out.last_linear = a.last_linear if a.last_linear > b.last_linear else b.last_linear
    else:
        check_float32(a, name, "the first operand")
        check_float32(b, name, "the second operand")
        out = _new_broadcast(a, b, name)
    _apply(op, out, a, b, False)
    if wants_grad(a) or wants_grad(b):
        node = BinaryNode.__new__(BinaryNode)
        node.op = op
        if op == ADD or op == SUB:
            record(out, node, (a, b))
        else:
            node.a = a if b.needs_grad else None
            node.b = b if a.needs_grad or op == DIV else None
            record(out, node, (a, b))
    return computed(out, name, None)


def add(a, b):
    """a + b with NumPy broadcasting; tensors, numbers or arrays (converted to float32).

    Raises ShapeError where the shapes do not broadcast, ConfigError for bfloat16 storage.
    """
    return _binary(ADD, a, b, "add")


def sub(a, b):
    """a - b (see `add`)."""
    return _binary(SUB, a, b, "sub")


def mul(a, b):
    """a * b (see `add`)."""
    return _binary(MUL, a, b, "mul")


def div(a, b):
    """a / b (see `add`); division by zero gives infinities and NaN as IEEE 754 says."""
    return _binary(DIV, a, b, "div")


def neg(x):
    """-x."""
    cdef Tensor a = check_float32(as_tensor(x), "neg", "x")
    cdef Tensor out = new_like(a)
    cdef NegNode node
    with nogil:
        scale(out.data, a.data, -1, a.size, False)
    if wants_grad(a):
        node = NegNode.__new__(NegNode)
        record(out, node, (a,))
    return computed(out, "neg", None)
