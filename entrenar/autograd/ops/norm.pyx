"""rms_norm and layer_norm over the last axis."""
from entrenar._kernels.norm cimport (
    layer_norm_backward,
    layer_norm_forward,
    rms_norm_backward,
    rms_norm_forward,
)
from entrenar.autograd.ops.matmul cimport check_scratch
from entrenar.autograd.tape cimport computed, grad_pointer, record, wants_grad
from entrenar.autograd.arguments cimport checked_number
from entrenar.autograd.tensor cimport Node, Tensor, as_tensor, check_float32, new_like, new_vector

from entrenar.errors import ShapeError


cdef Tensor checked_input(object x, str op):
    cdef Tensor t = check_float32(as_tensor(x), op, "x")
    if t.ndim == 0 or t.dims[t.ndim - 1] == 0:
        raise ShapeError(f"{op}: x has shape {t.shape}; it needs a last axis of at least one element.")
    return t


cdef Tensor checked_vector(object vector, str op, str name, Tensor x):
    cdef Tensor t = check_float32(as_tensor(vector), op, name)
    if t.ndim != 1 or t.dims[0] != x.dims[x.ndim - 1]:
        raise ShapeError(f"{op}: {name} has shape {t.shape}, expected ({x.dims[x.ndim - 1]},) to match the last axis "
                         f"of x {x.shape}.")
    return t


cdef class RMSNormNode(Node):
    cdef double eps
    cdef Tensor x
    cdef Tensor weight
    cdef Tensor rstd

    cdef Tensor recompute(self):
        cdef Tensor x = self.x, w = self.weight, rstd = self.rstd
        cdef Tensor out = new_like(x)
        cdef Py_ssize_t dim = x.dims[x.ndim - 1]
        with nogil:
            rms_norm_forward(out.data, rstd.data, x.data, w.data, x.size // dim, dim, self.eps)
        return out

    cdef int backward(self, Tensor grad) except -1:
        cdef Tensor x = self.x, w = self.weight, rstd = self.rstd
        cdef Py_ssize_t dim = x.dims[x.ndim - 1]
        cdef bint accumulate_x = False, accumulate_w = False
        cdef float* dx = grad_pointer(self.inputs[0], &accumulate_x)
        cdef float* dw = grad_pointer(self.inputs[1], &accumulate_w)
        cdef int status
        with nogil:
            status = rms_norm_backward(dx, dw, grad.data, x.data, w.data, rstd.data, x.size // dim, dim,
                                       accumulate_x, accumulate_w)
        return check_scratch(status, "rms_norm")


def rms_norm(x, weight, eps=1e-5):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last axis, for x (..., dim) and weight (dim,), float32.

    Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019 (arXiv 1910.07467). Raises ShapeError where the
    weight does not match the last axis.
    """
    cdef Tensor a = checked_input(x, "rms_norm"), w = checked_vector(weight, "rms_norm", "weight", a)
    cdef Py_ssize_t dim = a.dims[a.ndim - 1], rows = a.size // dim
    cdef Tensor out = new_like(a), rstd = new_vector(rows)
    cdef double epsilon = checked_number(eps, "rms_norm", "eps")
    cdef RMSNormNode node
    with nogil:
        rms_norm_forward(out.data, rstd.data, a.data, w.data, rows, dim, epsilon)
    if wants_grad(a) or wants_grad(w):
        node = RMSNormNode.__new__(RMSNormNode)
        node.eps = epsilon
        node.recomputes = True
        node.x, node.weight, node.rstd = a, w, rstd
        record(out, node, (a, w))
    return computed(out, "rms_norm", w)


cdef class LayerNormNode(Node):
    cdef Tensor x
    cdef Tensor weight
    cdef Tensor mean
    cdef Tensor rstd

    cdef int backward(self, Tensor grad) except -1:
        cdef Tensor x = self.x, w = self.weight, mean = self.mean, rstd = self.rstd
        cdef Py_ssize_t dim = x.dims[x.ndim - 1]
        cdef bint accumulate_x = False, accumulate_w = False, accumulate_b = False
        cdef float* dx = grad_pointer(self.inputs[0], &accumulate_x)
        cdef float* dw = grad_pointer(self.inputs[1], &accumulate_w)
        cdef float* db = grad_pointer(self.inputs[2], &accumulate_b)
        cdef const float* weight = NULL
        cdef int status
        if w is not None:
            weight = w.data
        with nogil:
            status = layer_norm_backward(dx, dw, db, grad.data, x.data, weight, mean.data, rstd.data, x.size // dim,
                                         dim, accumulate_x, accumulate_w, accumulate_b)
        return check_scratch(status, "layer_norm")


def layer_norm(x, weight=None, bias=None, eps=1e-5):
    """y = (x - mean) / sqrt(var + eps) * weight + bias over the last axis; weight and bias (dim,) may be None.

    The variance is the biased one. Ba, Kiros and Hinton, "Layer Normalization", 2016 (arXiv 1607.06450). Raises
    ShapeError where weight or bias does not match the last axis.
    """
    cdef Tensor a = checked_input(x, "layer_norm"), w = None, b = None
    if weight is not None:
        w = checked_vector(weight, "layer_norm", "weight", a)
    if bias is not None:
        b = checked_vector(bias, "layer_norm", "bias", a)
    cdef Py_ssize_t dim = a.dims[a.ndim - 1], rows = a.size // dim
    cdef Tensor out = new_like(a), mean = new_vector(rows), rstd = new_vector(rows)
    cdef const float* wp = NULL if w is None else w.data
    cdef const float* bp = NULL if b is None else b.data
    cdef double epsilon = checked_number(eps, "layer_norm", "eps")
    cdef LayerNormNode node
    with nogil:
        layer_norm_forward(out.data, mean.data, rstd.data, a.data, wp, bp, rows, dim, epsilon)
    if wants_grad(a) or wants_grad(w) or wants_grad(b):
        node = LayerNormNode.__new__(LayerNormNode)
        node.x, node.weight, node.mean, node.rstd = a, w, mean, rstd
        record(out, node, (a, w, b))
    return computed(out, "layer_norm", w)
