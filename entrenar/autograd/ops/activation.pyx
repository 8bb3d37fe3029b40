"""Elementwise functions: relu, gelu, silu, sigmoid, tanh, exp, log, sqrt, pow, softcap; swiglu and geglu fused."""
from entrenar._kernels.activation cimport (
    geglu_backward,
    geglu_forward,
    map_backward,
    map_forward,
    pow_backward,
    pow_forward,
    softcap_backward,
    softcap_forward,
    swiglu_backward,
    swiglu_forward,
)
from entrenar._kernels.cpu cimport simd
from entrenar._kernels.simd.activation cimport activation_backward, activation_forward
from entrenar.autograd.tape cimport computed, grad_buffer, grad_pointer, record, takes_grad, wants_grad
from entrenar.autograd.arguments cimport checked_cap, checked_number
from entrenar.autograd.tensor cimport Node, Tensor, alias, as_tensor, check_float32, new_like, same_shape

from entrenar.errors import ConfigError, ShapeError

__all__ = [
    "exp", "geglu", "gelu", "log", "pow", "relu", "sigmoid", "silu", "softcap", "sqrt", "swiglu", "swish", "tanh",
]


ctypedef void (*parameter_map)(float* y, const float* x, float parameter, Py_ssize_t n) noexcept nogil
ctypedef void (*parameter_slope)(float* dx, const float* dy, const float* saved, float parameter, Py_ssize_t n,
                                 bint accumulate) noexcept nogil
ctypedef void (*gated_kernel)(float* y, const float* gate, const float* up, Py_ssize_t n) noexcept nogil
ctypedef void (*gated_slopes)(float* dgate, float* dup, const float* dy, const float* gate, const float* up,
                              Py_ssize_t n, bint accumulate_gate, bint accumulate_up) noexcept nogil


cdef class MapNode(Node):
    cdef activation_backward slope
    cdef Tensor x_or_y  # the one that the derivative is a function of

    cdef int backward(self, Tensor grad) except -1:
        cdef Tensor saved = self.x_or_y, dx
        cdef bint accumulate
        if takes_grad(self.inputs[0]):
            dx = grad_buffer(self.inputs[0], &accumulate)
            with nogil:
                map_backward(self.slope, dx.data, grad.data, saved.data, dx.size, accumulate)
        return 0


cdef Tensor mapped(object x, str op, activation_forward function, activation_backward slope, bint saves_output):
    cdef Tensor a = check_float32(as_tensor(x), op, "x"), out = new_like(a)
    cdef MapNode node
    with nogil:
        map_forward(function, out.data, a.data, a.size)
    if wants_grad(a):
        node = MapNode.__new__(MapNode)
        node.slope = slope
        node.x_or_y = alias(out) if saves_output else a
        record(out, node, (a,))
    return computed(out, op, None)


def relu(x):
    """max(x, 0), elementwise; the gradient at 0 is 0."""
    return mapped(x, "relu", simd.activation.relu, simd.activation.relu_backward, False)


def gelu(x, approximate="none"):
    """x Phi(x), elementwise: exact through erf, or approximate="tanh". Hendrycks, Gimpel, 2016 (arXiv 1606.08415)."""
    if not isinstance(approximate, str):
        raise ConfigError(f"gelu: approximate must be 'none' or 'tanh', not {approximate!r:.80}.")
    if approximate == "none":
        return mapped(x, "gelu", simd.activation.gelu, simd.activation.gelu_backward, False)
    if approximate == "tanh":
        return mapped(x, "gelu", simd.activation.gelu_tanh, simd.activation.gelu_tanh_backward, False)
    raise ConfigError(f"gelu: approximate={approximate!r} is unknown; choose 'none' or 'tanh'.")


def silu(x):
    """x sigmoid(x), elementwise, also called swish. Ramachandran et al., 2017 (arXiv 1710.05941)."""
    return mapped(x, "silu", simd.activation.silu, simd.activation.silu_backward, False)


swish = silu


def sigmoid(x):
    """1 / (1 + e^-x), elementwise."""
    return mapped(x, "sigmoid", simd.activation.sigmoid, simd.activation.sigmoid_backward, True)


def tanh(x):
    """The hyperbolic tangent, elementwise."""
    return mapped(x, "tanh", simd.activation.tanh, simd.activation.tanh_backward, True)


def exp(x):
    """e^x, elementwise."""
    return mapped(x, "exp", simd.activation.exp, simd.activation.exp_backward, True)


def log(x):
    """The natural logarithm, elementwise; -inf at 0 and NaN below."""
    return mapped(x, "log", simd.activation.log, simd.activation.log_backward, False)


def sqrt(x):
    """The square root, elementwise; NaN below 0."""
    return mapped(x, "sqrt", simd.activation.sqrt, simd.activation.sqrt_backward, True)


cdef class ParameterNode(Node):
    cdef parameter_slope slope
    cdef float parameter
    cdef Tensor x_or_y  # the one that the derivative is a function of

    cdef int backward(self, Tensor grad) except -1:
        cdef Tensor saved = self.x_or_y, dx
        cdef bint accumulate
        if takes_grad(self.inputs[0]):
            dx = grad_buffer(self.inputs[0], &accumulate)
            with nogil:
                self.slope(dx.data, grad.data, saved.data, self.parameter, dx.size, accumulate)
        return 0


cdef Tensor with_parameter(object x, float parameter, str op, parameter_map function, parameter_slope slope,
                           bint saves_output):
    cdef Tensor a = check_float32(as_tensor(x), op, "x"), out = new_like(a)
    cdef ParameterNode node
    with nogil:
        function(out.data, a.data, parameter, a.size)
    if wants_grad(a):
        node = ParameterNode.__new__(ParameterNode)
        node.slope, node.parameter = slope, parameter
        node.x_or_y = alias(out) if saves_output else a
        record(out, node, (a,))
    return computed(out, op, None)


def pow(x, exponent):
    """x to the power of a number, elementwise. Raises ConfigError where the exponent is no plain number."""
    return with_parameter(x, checked_number(exponent, "pow", "the exponent"), "pow", pow_forward, pow_backward, False)


def softcap(x, cap):
    """cap tanh(x / cap), elementwise: within [-cap, cap]. Gemma Team, 2024 (arXiv 2408.00118).

    Raises ConfigError where the cap is no positive finite number.
    """
    return with_parameter(x, checked_cap(cap, "softcap", "cap"), "softcap", softcap_forward, softcap_backward, True)


cdef class GatedNode(Node):
    cdef gated_kernel function
    cdef gated_slopes slopes
    cdef Tensor gate
    cdef Tensor up

    cdef Tensor recompute(self):
        cdef Tensor gate = self.gate, up = self.up, out = new_like(gate)
        with nogil:
            self.function(out.data, gate.data, up.data, gate.size)
        return out

    cdef int backward(self, Tensor grad) except -1:
        cdef Tensor gate = self.gate, up = self.up
        cdef bint accumulate_gate = False, accumulate_up = False
        cdef float* dgate = grad_pointer(self.inputs[0], &accumulate_gate)
        # the same tensor as gate and up takes both gradients one after the other
        cdef bint shared = gate is up
        cdef float* dup = NULL if shared else grad_pointer(self.inputs[1], &accumulate_up)
        with nogil:
            self.slopes(dgate, dup, grad.data, gate.data, up.data, gate.size, accumulate_gate, accumulate_up)
            if shared and dgate != NULL:
                self.slopes(NULL, dgate, grad.data, gate.data, up.data, gate.size, True, True)
        return 0


cdef Tensor gated(object gate, object up, str op, gated_kernel function, gated_slopes slopes):
    cdef Tensor g = check_float32(as_tensor(gate), op, "gate"), u = check_float32(as_tensor(up), op, "up")
    if not same_shape(g, u):
        raise ShapeError(f"{op}: gate has shape {g.shape} and up {u.shape}; expected the same.")
    cdef Tensor out = new_like(g)
    cdef GatedNode node
    with nogil:
        function(out.data, g.data, u.data, g.size)
    if wants_grad(g) or wants_grad(u):
        node = GatedNode.__new__(GatedNode)
        node.recomputes = True
        node.function, node.slopes = function, slopes
        node.gate, node.up = g, u
        record(out, node, (g, u))
    return computed(out, op, None)


def swiglu(gate, up):
    """silu(gate) * up, elementwise, one node that saves gate and up only. Shazeer, 2020 (arXiv 2002.05202).

    Raises ShapeError where the shapes differ.
    """
    return gated(gate, up, "swiglu", swiglu_forward, swiglu_backward)


def geglu(gate, up):
    """gelu(gate, "tanh") * up, elementwise, one node that saves gate and up only. Shazeer, 2020 (arXiv 2002.05202).

    Raises ShapeError where the shapes differ.
    """
    return gated(gate, up, "geglu", geglu_forward, geglu_backward)
