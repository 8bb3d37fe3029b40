"""softmax and log_softmax along any axis."""
from entrenar._kernels.softmax cimport (
    log_softmax_backward,
    log_softmax_forward,
    softmax_backward,
    softmax_forward,
)
from entrenar.autograd.ops.shape import transpose
from entrenar.autograd.tape cimport computed, grad_buffer, record, takes_grad, wants_grad
from entrenar.autograd.arguments cimport checked_integer
from entrenar.autograd.tensor cimport Node, Tensor, alias, as_tensor, check_float32, new_like

from entrenar.errors import ShapeError


cdef class SoftmaxNode(Node):
    cdef bint is_log
    cdef Tensor y

    cdef int backward(self, Tensor grad) except -1:
        cdef Tensor y = self.y
        cdef bint accumulate
        if not takes_grad(self.inputs[0]):
            return 0
        cdef Tensor dx = grad_buffer(self.inputs[0], &accumulate)
        cdef Py_ssize_t n = y.dims[y.ndim - 1], rows = y.size // n if n else 0
        with nogil:
            if self.is_log:
                log_softmax_backward(dx.data, grad.data, y.data, rows, n, accumulate)
            else:
                softmax_backward(dx.data, grad.data, y.data, rows, n, accumulate)
        return 0


cdef Tensor last_axis(Tensor x, bint is_log):
    cdef Tensor out = new_like(x)
    cdef Py_ssize_t n = x.dims[x.ndim - 1], rows = x.size // n if n else 0
    cdef SoftmaxNode node
    with nogil:
        if is_log:
            log_softmax_forward(out.data, x.data, rows, n)
        else:
            softmax_forward(out.data, x.data, rows, n)
    if wants_grad(x):
        node = SoftmaxNode.__new__(SoftmaxNode)
        node.is_log = is_log
        node.y = alias(out)
        record(out, node, (x,))
    return computed(out, "log_softmax" if is_log else "softmax", None)


cdef object any_axis(object x, object wanted, str op, bint is_log):
    cdef Tensor t = check_float32(as_tensor(x), op, "x")
    cdef long long axis = checked_integer(wanted, op, "axis")
    if not -t.ndim <= axis < t.ndim:
        raise ShapeError(f"{op}: axis {axis} is outside the {t.ndim} axes of x {t.shape}.")
    if axis < 0:  # C's remainder would leave it negative
        axis += t.ndim
    if axis == t.ndim - 1:
        return last_axis(t, is_log)
    order = list(range(t.ndim))
    order[axis], order[-1] = order[-1], order[axis]
    return transpose(last_axis(transpose(t, tuple(order)), is_log), tuple(order))


def softmax(x, axis=-1):
    """e^x / sum(e^x) along `axis`. Raises ShapeError for an axis that x does not have."""
    return any_axis(x, axis, "softmax", False)


def log_softmax(x, axis=-1):
    """x - log(sum(e^x)) along `axis`. Raises ShapeError for an axis that x does not have."""
    return any_axis(x, axis, "log_softmax", True)
