"""cross_entropy of logits, and linear_cross_entropy, which never holds more than a chunk of them."""
from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

import numpy as np

from entrenar._kernels.activation cimport softcap_backward, softcap_forward
from entrenar._kernels.cpu cimport simd
from entrenar._kernels.cross_entropy cimport cross_entropy_backward, cross_entropy_forward
from entrenar._kernels.gemm cimport linear_backward_input, linear_backward_weight, linear_forward
from entrenar._kernels.partition cimport ceil_div
from entrenar._kernels.simd.matrix_view cimport matrix_view
from entrenar.autograd.ops.embedding cimport checked_indices
from entrenar.autograd.ops.matmul cimport check_scratch, checked_input, matrix_view_of
from entrenar.autograd.quantized cimport QuantizedTensor
from entrenar.autograd.tape cimport computed, give_grad, grad_buffer, record, takes_grad, wants_grad
from entrenar.autograd.arguments cimport checked_cap, checked_integer, checked_number
from entrenar.autograd.tensor cimport (
    MAX_DIMS, Node, Tensor, as_tensor, check_float32, new_like, new_matrix, new_scalar, new_tensor, new_vector,
)

from entrenar.errors import ConfigError, NumericsError, ShapeError

cdef enum:
    CHUNK_BYTES = 48 << 20  # of logits, or their gradients, that linear_cross_entropy holds

HEAD_CHUNK_BYTES = CHUNK_BYTES


cdef int check_reduction(object reduction, tuple allowed, str op) except -1:
    if not isinstance(reduction, str) or reduction not in allowed:
        raise ConfigError(f"{op}: reduction={reduction!r} is unknown; choose one of {', '.join(allowed)}.")
    return 0


cdef double divisor_of(object reduction, object divisor, double counted, str op) except? -1:
    """What the summed loss is divided by."""
    if reduction != "mean":
        return 1.0
    if divisor is not None:
        if not checked_number(divisor, op, "divisor") > 0:
            raise ConfigError(f"{op}: divisor is {divisor}, expected a positive number of tokens.")
        return checked_number(divisor, op, "divisor")
    if counted == 0:
        raise NumericsError(f"{op}: every target is ignored, so the mean has no tokens; check the prompt masking.")
    return counted


cdef double total(const float* losses, const float* weights, Py_ssize_t n) noexcept nogil:
    """The sum of the losses, each times its weight where there are weights."""
    cdef double sum = 0
    cdef Py_ssize_t i
    if weights != NULL:
        for i in range(n):
            sum += <double> losses[i] * weights[i]
        return sum
    for i in range(n):
        sum += losses[i]
    return sum


# ---------------------------------------------------------------- cross_entropy
cdef class CrossEntropyNode(Node):
    cdef float inverse
    cdef int64_t ignore_index
    cdef bint per_row
    cdef Tensor logits
    cdef Tensor lse
    cdef object targets

    cdef int backward(self, Tensor grad) except -1:
        if not takes_grad(self.inputs[0]):
            return 0
        cdef Tensor logits = self.logits, lse = self.lse, dlogits
        cdef const int64_t[::1] targets = self.targets
        cdef Py_ssize_t rows = targets.shape[0], vocabulary = logits.dims[logits.ndim - 1]
        cdef float scale = 0
        cdef bint accumulate
        cdef const int64_t* first = &targets[0] if rows else NULL
        dlogits = grad_buffer(self.inputs[0], &accumulate)
        if not self.per_row:
            scale = grad.data[0] * self.inverse
        with nogil:
            cross_entropy_backward(dlogits.data, logits.data, lse.data, first,
                                   grad.data if self.per_row else &scale, 1 if self.per_row else 0, rows, vocabulary,
                                   self.ignore_index, accumulate)
        return 0


def cross_entropy(logits, targets, ignore_index=-100, reduction="mean"):
    """-log softmax(logits)[target], for logits (..., vocabulary) float32 and integer targets (...).

    Rows whose target is `ignore_index` count nothing. `reduction`: "mean" over the rows that count, "sum", or "none"
    (one loss a row). Raises ShapeError for a target outside the vocabulary or shapes that do not fit, NumericsError for
    the mean of no row.
    """
    cdef Tensor x = check_float32(as_tensor(logits), "cross_entropy", "logits"), losses, lse, out
    cdef Py_ssize_t rows, vocabulary
    cdef CrossEntropyNode node
    cdef int64_t ignored = checked_integer(ignore_index, "cross_entropy", "ignore_index")
    check_reduction(reduction, ("mean", "sum", "none"), "cross_entropy")
    if x.ndim == 0 or x.dims[x.ndim - 1] == 0:
        raise ShapeError(f"cross_entropy: logits have shape {x.shape}, expected (..., vocabulary).")
    vocabulary = x.dims[x.ndim - 1]
    array = checked_indices(targets, "cross_entropy", "targets", vocabulary, ignore_index)
    if array.shape != x.shape[:-1]:
        raise ShapeError(f"cross_entropy: targets have shape {array.shape}, expected {x.shape[:-1]} for logits "
                         f"{x.shape}.")
    flat = array.reshape(-1)
    cdef const int64_t[::1] ids = flat
    rows = ids.shape[0]
    cdef const int64_t* first = &ids[0] if rows else NULL
    cdef Py_ssize_t[MAX_DIMS] dims
    cdef int i
    for i in range(x.ndim - 1):
        dims[i] = x.dims[i]
    losses = new_tensor(x.ndim - 1, dims)
    lse = new_vector(rows)
    if rows:
        with nogil:
            cross_entropy_forward(losses.data, lse.data, x.data, first, rows, vocabulary, ignored)
    cdef double divisor = divisor_of(reduction, None, np.count_nonzero(flat != ignore_index), "cross_entropy")
    out = losses if reduction == "none" else new_scalar(total(losses.data, NULL, rows) / divisor)
    if wants_grad(x):
        node = CrossEntropyNode.__new__(CrossEntropyNode)
        node.inverse = 1.0 / divisor
        node.ignore_index = ignored
        node.per_row = reduction == "none"
        node.logits, node.lse, node.targets = x, lse, flat
        record(out, node, (x,))
    return computed(out, "cross_entropy", None)


# ---------------------------------------------------------------- the head and its loss as one
cdef class LinearCrossEntropyNode(Node):
    """Saves the gradients for an output gradient of 1: they were computed chunk by chunk, with the logits at hand."""
    cdef Tensor dx
    cdef Tensor dw
    cdef object rows  # of x whose target counts

    cdef int backward(self, Tensor grad) except -1:
        cdef Node x = self.inputs[0]
        cdef Tensor dx = self.dx, dw = self.dw, out
        cdef const int64_t[::1] rows = self.rows
        cdef Py_ssize_t hidden, i
        cdef bint accumulate
        cdef float scale = grad.data[0]
        cdef float* row
        if dx is not None and takes_grad(x):
            hidden = x.dims[x.ndim - 1]
            out = grad_buffer(x, &accumulate)
            if not accumulate:
                memset(out.data, 0, out.size * sizeof(float))
            for i in range(rows.shape[0]):
                row = out.data + rows[i] * hidden
                simd.elementwise.scale_add(row, dx.data + i * hidden, scale, hidden)
        if dw is not None:
            simd.elementwise.scale(dw.data, dw.data, scale, dw.size)
            give_grad(self.inputs[1], dw)
        return 0


cdef double fused_chunks(Tensor x, matrix_view* head, const int64_t* rows, const int64_t* targets, Py_ssize_t count,
                         Py_ssize_t vocabulary, float inverse, const float* weights, const float* scales, float cap,
                         Tensor dx, Tensor dw) except? -1:
    """The summed loss of `count` rows of x; gradients of loss * inverse go to dx (count, hidden), dw, if not None.

    Where there are weights of the rows, `scales` are each one's times inverse. A cap that is not 0 bounds the logits,
    of which a copy is then held for its slope.
    """
    cdef Py_ssize_t hidden = x.dims[x.ndim - 1], first = 0, n, i
    cdef bint slopes = cap != 0 and (dx is not None or dw is not None)
    cdef Py_ssize_t most = max(1, CHUNK_BYTES // (4 * vocabulary * (2 if slopes else 1)))
    cdef Py_ssize_t chunks = max(1, ceil_div(count, most))
    cdef Py_ssize_t per_chunk = ceil_div(count, chunks)  # equal chunks: the head is dequantized for each
    cdef Tensor logits = new_matrix(per_chunk, vocabulary), gathered = new_matrix(per_chunk, hidden)
    cdef Tensor losses = new_vector(per_chunk), lse = new_vector(per_chunk)
    cdef Tensor capped = new_matrix(per_chunk, vocabulary) if slopes else logits
    cdef const float* scale = &inverse
    if weights != NULL:
        scale = scales
    cdef double loss = 0
    cdef int status = 0
    while first < count:
        n = min(per_chunk, count - first)
        for i in range(n):
            memcpy(gathered.data + i * hidden, x.data + rows[first + i] * hidden, hidden * sizeof(float))
        with nogil:
            status |= linear_forward(logits.data, gathered.data, head, n, vocabulary, hidden)
            if cap != 0:
                softcap_forward(capped.data, logits.data, cap, n * vocabulary)
            cross_entropy_forward(losses.data, lse.data, capped.data, targets + first, n, vocabulary, -1)
            loss += total(losses.data, weights, n)
        if dx is not None or dw is not None:
            with nogil:
                cross_entropy_backward(logits.data, capped.data, lse.data, targets + first, scale, weights != NULL, n,
                                       vocabulary, -1, False)
                if cap != 0:
                    softcap_backward(logits.data, logits.data, capped.data, cap, n * vocabulary, False)
        if dx is not None:
            with nogil:
                status |= linear_backward_input(dx.data + first * hidden, logits.data, head, n, vocabulary, hidden,
                                                False)
        if dw is not None:
            with nogil:
                status |= linear_backward_weight(dw.data, logits.data, gathered.data, n, vocabulary, hidden, first > 0)
        check_scratch(status, "linear_cross_entropy")
        first += n
        if weights != NULL:
            weights += n
            scale += n
    if dw is not None and count == 0:
        memset(dw.data, 0, dw.size * sizeof(float))
    return loss


cdef object chosen_weights(object weights, tuple shape, object counted):
    """The weights of the counted rows, (count,) float32."""
    array = np.asarray(weights, np.float32)
    if array.shape != shape:
        raise ShapeError(f"linear_cross_entropy: weights have shape {array.shape}, expected {shape} as the targets.")
    chosen = array.reshape(-1)[counted]
    if not (np.isfinite(chosen).all() and (chosen >= 0).all()):
        raise ConfigError("linear_cross_entropy: weights must be finite and not negative.")
    return np.ascontiguousarray(chosen)


def linear_cross_entropy(x, weight, targets, ignore_index=-100, reduction="mean", divisor=None, softcap=None,
                         weights=None):
    """cross_entropy(linear(x, weight), targets) that holds at most 48 MiB of logits at a time.

    x (..., hidden), weight (vocabulary, hidden) of any weight type, integer targets (...). Rows whose target is
    `ignore_index` are not multiplied at all. `reduction` is "mean" or "sum"; `divisor` replaces the number of counted
    rows under "mean". `weights` (...), not negative, multiply the rows' losses; the mean is over their sum then, as
    torch's with class weights. `softcap` c bounds the logits to c tanh(logit / c). The gradients are computed in the
    forward pass, chunk by chunk, as Liger Kernel does (Hsu et al., 2024, arXiv 2410.10989). Raises what cross_entropy
    and linear raise, and ConfigError for a softcap that is not positive or weights that are negative or not finite.
    """
    cdef matrix_view head
    cdef Py_ssize_t vocabulary, hidden, count
    cdef Tensor dx = None, dw = None, out
    cdef LinearCrossEntropyNode node
    cdef float cap = 0 if softcap is None else checked_cap(softcap, "linear_cross_entropy", "softcap")
    check_reduction(reduction, ("mean", "sum"), "linear_cross_entropy")
    ignore_index = checked_integer(ignore_index, "linear_cross_entropy", "ignore_index")
    if not isinstance(weight, QuantizedTensor):
        weight = as_tensor(weight)
    matrix_view_of(weight, "linear_cross_entropy", &head, &vocabulary, &hidden)
    if vocabulary == 0:
        raise ShapeError(f"linear_cross_entropy: the weight has shape (0, {hidden}), expected at least one vocabulary "
                         "entry.")
    cdef Tensor t = checked_input(x, "linear_cross_entropy", vocabulary, hidden)
    array = checked_indices(targets, "linear_cross_entropy", "targets", vocabulary, ignore_index)
    if array.shape != t.shape[:-1]:
        raise ShapeError(f"linear_cross_entropy: targets have shape {array.shape}, expected {t.shape[:-1]} for x "
                         f"{t.shape}.")
    flat = array.reshape(-1)
    counted = np.flatnonzero(flat != ignore_index).astype(np.int64)
    chosen = flat[counted]
    count = len(counted)
    cdef const int64_t[::1] rows = counted, ids = chosen
    cdef const float[::1] each = None, scales = None
    if weights is not None:
        each = chosen_weights(weights, array.shape, counted)
    cdef double scale = divisor_of(reduction, divisor, count if each is None else np.sum(each, dtype=np.float64),
                                   "linear_cross_entropy")
    if each is not None:
        scales = (np.asarray(each, np.float64) / scale).astype(np.float32)
    cdef Tensor w = <Tensor> weight if isinstance(weight, Tensor) else None
    if wants_grad(t):
        dx = new_matrix(count, hidden)
    if wants_grad(w):
        dw = new_like(w)
    cdef double loss = fused_chunks(t, &head, &rows[0] if count else NULL, &ids[0] if count else NULL, count,
                                    vocabulary, 1.0 / scale, &each[0] if each is not None and count else NULL,
                                    &scales[0] if each is not None and count else NULL, cap, dx, dw)
    out = new_scalar(loss / scale)
    if dx is not None or dw is not None:
        node = LinearCrossEntropyNode.__new__(LinearCrossEntropyNode)
        node.dx, node.dw, node.rows = dx, dw, counted
        record(out, node, (t, w))
    return computed(out, "linear_cross_entropy", weight)
