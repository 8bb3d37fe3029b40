"""In-place updates of one parameter: the checked entries to the optimizer kernels. Everything is float32."""
from entrenar._kernels.elementwise cimport fill, scale
from entrenar._kernels.optimizer cimport adam_step as adam_kernel
from entrenar._kernels.optimizer cimport clamp as clamp_kernel
from entrenar._kernels.optimizer cimport sgd_step as sgd_kernel
from entrenar._kernels.optimizer cimport sum_squares as sum_squares_kernel
from entrenar._kernels.simd.optimizer cimport adam_options, sgd_options
from entrenar.autograd.tensor cimport FLOAT32, Tensor, new_like, same_shape

from entrenar.errors import MemoryBudgetError, ShapeError


cdef int _check(Tensor p, Tensor t, str name) except -1:
    if p is None or t is None or t.kind != FLOAT32 or not same_shape(p, t):
        raise ShapeError(f"An optimizer step needs a float32 {name} of the parameter's shape {p.shape}, not "
                         f"{'none' if t is None else (t.dtype, t.shape)}.")
    return 0


def zeros_like(Tensor t not None):
    """Zeros of t's shape."""
    cdef Tensor z = new_like(t)
    with nogil:
        fill(z.data, 0, z.size)
    return z


def sgd_step(Tensor p, Tensor g, Tensor buffer, *, double lr, double momentum, double dampening, double weight_decay,
             bint nesterov, bint first):
    """One step of SGD on parameter `p` with gradient `g`; `buffer` is the momentum, None where momentum is 0."""
    cdef sgd_options options
    cdef float* b = NULL
    _check(p, g, "gradient")
    if buffer is not None:
        _check(p, buffer, "momentum buffer")
        b = buffer.data
    options.lr = <float> lr
    options.momentum = <float> momentum
    options.dampening = <float> dampening
    options.weight_decay = <float> weight_decay
    options.nesterov = nesterov
    options.first = first
    with nogil:
        sgd_kernel(p.data, b, g.data, p.size, &options)


def adam_step(Tensor p, Tensor g, Tensor m, Tensor v, long long step, *, double lr, double beta1, double beta2,
              double eps, double weight_decay, bint decoupled):
    """Step number `step` (from 1) of Adam, or of AdamW where `decoupled`. Bias corrections are float64."""
    cdef adam_options options
    _check(p, g, "gradient")
    _check(p, m, "first moment")
    _check(p, v, "second moment")
    options.beta1 = <float> beta1
    options.beta2 = <float> beta2
    options.one_minus_beta1 = <float> (1 - beta1)
    options.one_minus_beta2 = <float> (1 - beta2)
    options.step_size = <float> (lr / (1 - beta1 ** step))
    options.denominator_scale = <float> ((1 - beta2 ** step) ** -0.5)
    options.eps = <float> eps
    options.decay = <float> (1 - lr * weight_decay if decoupled else 1)
    options.l2 = <float> (0 if decoupled else weight_decay)
    with nogil:
        adam_kernel(p.data, m.data, v.data, g.data, p.size, &options)


def sum_squares(Tensor t not None):
    """The sum of the squares of t's elements, accumulated in float64."""
    cdef double total = 0
    cdef int status
    with nogil:
        status = sum_squares_kernel(&total, t.data, t.size)
    if status:
        raise MemoryBudgetError("A gradient norm found no memory for its partial sums: the machine is out of memory.")
    return total


def scale_(Tensor t not None, double factor):
    """Multiply t by `factor` in place."""
    with nogil:
        scale(t.data, t.data, <float> factor, t.size, False)


def clamp_(Tensor t not None, double limit):
    """Bring every element of t into [-limit, limit] in place."""
    with nogil:
        clamp_kernel(t.data, <float> limit, t.size)
