"""In-place updates of parameters: the checked entries to the optimizer kernels. Everything is float32."""
from libc.stdlib cimport free, malloc

from entrenar._kernels.elementwise cimport fill as fill_kernel
from entrenar._kernels.elementwise cimport scale
from entrenar._kernels.optimizer cimport adam_step as adam_kernel
from entrenar._kernels.optimizer cimport clamp as clamp_kernel
from entrenar._kernels.optimizer cimport number_jobs, optimizer_run
from entrenar._kernels.optimizer cimport schedulefree_step as schedulefree_kernel
from entrenar._kernels.optimizer cimport sgd_step as sgd_kernel
from entrenar._kernels.optimizer cimport sum_squares as sum_squares_kernel
from entrenar._kernels.simd.optimizer cimport adam_options, schedulefree_options, sgd_options
from entrenar.autograd.tensor cimport FLOAT32, Tensor, new_like, same_shape

from entrenar.errors import MemoryBudgetError, ShapeError


cdef int _check(Tensor p, Tensor t, str name) except -1:
    if p is None or p.weight_type != FLOAT32:
        raise ShapeError(f"An optimizer updates float32 tensors, not {'none' if p is None else p.dtype}.")
    if t is None or t.weight_type != FLOAT32 or not same_shape(p, t):
        raise ShapeError(f"An optimizer step needs a float32 {name} of the parameter's shape {p.shape}, not "
                         f"{'none' if t is None else (t.dtype, t.shape)}.")
    return 0


def zeros_like(Tensor t not None):
    """Zeros of t's shape."""
    cdef Tensor z = new_like(t)
    with nogil:
        fill_kernel(z.data, 0, z.size)
    return z


cdef class _Runs:
    """C arrays of what is updated together, and of `option_bytes` for each; freed with the object."""
    cdef optimizer_run* runs
    cdef void* options
    cdef Py_ssize_t count
    cdef Py_ssize_t jobs

    def __cinit__(self, Py_ssize_t count, Py_ssize_t option_bytes):
        self.count = count
        self.runs = <optimizer_run*> malloc(max(1, count) * sizeof(optimizer_run))
        self.options = malloc(max(1, count) * option_bytes)
        if self.runs == NULL or self.options == NULL:
            raise MemoryBudgetError("An optimizer step found no memory for its list: the machine is out of memory.")

    def __dealloc__(self):
        free(self.runs)
        free(self.options)

    cdef int fill(self, Py_ssize_t i, Tensor p, Tensor g, Tensor state, Tensor state2) except -1:
        self.runs[i].p = p.data
        self.runs[i].g = g.data
        self.runs[i].state = state.data if state is not None else NULL
        self.runs[i].state2 = state2.data if state2 is not None else NULL
        self.runs[i].n = g.size
        return 0

    cdef int number(self) except -1:
        self.jobs = number_jobs(self.runs, self.count)
        return 0


def sgd_step(list entries, *, double gradient_scale, double lr, double momentum, double dampening, double weight_decay,
             bint nesterov):
    """One step of SGD on every (parameter, gradient, momentum buffer or None, whether it is the first step)."""
    cdef _Runs runs = _Runs(len(entries), sizeof(sgd_options))
    cdef sgd_options* options = <sgd_options*> runs.options
    cdef Tensor p, g, buffer
    cdef Py_ssize_t i = 0
    for p, g, buffer, first in entries:
        _check(p, g, "gradient")
        if buffer is not None:
            _check(p, buffer, "momentum buffer")
        runs.fill(i, p, g, buffer, None)
        options[i].scale = <float> gradient_scale
        options[i].lr = <float> lr
        options[i].momentum = <float> momentum
        options[i].dampening = <float> dampening
        options[i].weight_decay = <float> weight_decay
        options[i].nesterov = nesterov
        options[i].first = first
        i += 1
    runs.number()
    with nogil:
        sgd_kernel(runs.runs, runs.count, runs.jobs, options)


def adam_step(list entries, *, double gradient_scale, double lr, double beta1, double beta2, double eps,
              double weight_decay, bint decoupled):
    """One step of Adam, or of AdamW where `decoupled`, on every (parameter, gradient, first moment, second, step).

    Steps count from 1; bias corrections are float64.
    """
    cdef _Runs runs = _Runs(len(entries), sizeof(adam_options))
    cdef adam_options* options = <adam_options*> runs.options
    cdef Tensor p, g, m, v
    cdef Py_ssize_t i = 0
    cdef long long step
    for p, g, m, v, step in entries:
        _check(p, g, "gradient")
        _check(p, m, "first moment")
        _check(p, v, "second moment")
        runs.fill(i, p, g, m, v)
        options[i].scale = <float> gradient_scale
        options[i].beta1 = <float> beta1
        options[i].beta2 = <float> beta2
        options[i].one_minus_beta1 = <float> (1 - beta1)
        options[i].one_minus_beta2 = <float> (1 - beta2)
        options[i].step_size = <float> (lr / (1 - beta1 ** step))
        options[i].denominator_scale = <float> ((1 - beta2 ** step) ** -0.5)
        options[i].eps = <float> eps
        options[i].decay = <float> (1 - lr * weight_decay if decoupled else 1)
        options[i].l2 = <float> (0 if decoupled else weight_decay)
        i += 1
    runs.number()
    with nogil:
        adam_kernel(runs.runs, runs.count, runs.jobs, options)


def schedulefree_step(list entries, *, double gradient_scale, double lr, double beta1, double beta2, double eps,
                      double weight_decay):
    """One step of schedule-free AdamW on every (y, gradient, z, second moment, step, share of z in the average).

    Steps count from 1; what depends on them is float64.
    """
    cdef _Runs runs = _Runs(len(entries), sizeof(schedulefree_options))
    cdef schedulefree_options* options = <schedulefree_options*> runs.options
    cdef Tensor y, g, z, v
    cdef Py_ssize_t i = 0
    cdef long long step
    cdef double average
    for y, g, z, v, step, average in entries:
        _check(y, g, "gradient")
        _check(y, z, "z")
        _check(y, v, "second moment")
        runs.fill(i, y, g, z, v)
        options[i].scale = <float> gradient_scale
        options[i].beta2 = <float> beta2
        options[i].one_minus_beta2 = <float> (1 - beta2)
        options[i].denominator_scale = <float> ((1 - beta2 ** step) ** -0.5)
        options[i].eps = <float> eps
        options[i].weight_decay = <float> weight_decay
        options[i].lr = <float> lr
        options[i].average = <float> average
        options[i].y_step = <float> (lr * (1 - beta1 * (1 - average)))
        i += 1
    runs.number()
    with nogil:
        schedulefree_kernel(runs.runs, runs.count, runs.jobs, options)


def sum_squares(list tensors):
    """The sum of the squares of each tensor's elements, accumulated in float64."""
    cdef _Runs runs = _Runs(len(tensors), sizeof(double))
    cdef double* totals = <double*> runs.options
    cdef Tensor t
    cdef Py_ssize_t i = 0
    cdef int status
    for t in tensors:
        _check(t, t, "gradient")
        runs.fill(i, t, t, None, None)
        i += 1
    runs.number()
    with nogil:
        status = sum_squares_kernel(totals, runs.runs, runs.count, runs.jobs)
    if status:
        raise MemoryBudgetError("A gradient norm found no memory for its partial sums: the machine is out of memory.")
    return [totals[i] for i in range(runs.count)]


def scale_(Tensor t not None, double factor):
    """Multiply t by `factor` in place."""
    with nogil:
        scale(t.data, t.data, <float> factor, t.size, False)


def clamp_(Tensor t not None, double limit):
    """Bring every element of t into [-limit, limit] in place."""
    with nogil:
        clamp_kernel(t.data, <float> limit, t.size)
