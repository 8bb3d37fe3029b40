"""matmul, linear, grouped_linear and lora_linear: products of matrices, the weight of a linear of any type."""
from libc.stdint cimport uint64_t
from libc.string cimport memset

from entrenar._kernels.dropout cimport dropout_forward
from entrenar._kernels.gemm cimport (
    NN,
    NT,
    TN,
    gemm,
    grouped_linear_forward,
    linear_backward_input,
    linear_backward_weight,
)
from entrenar._kernels.simd.gemm cimport gemm_operand_b
from entrenar._kernels.simd.matrix_view cimport matrix_view
from entrenar._kernels.simd.weights.types cimport WEIGHT_BF16, WEIGHT_F16, f32_view
from entrenar._kernels.skinny cimport (
    skinny_backward,
    skinny_backward_a,
    skinny_backward_input,
    skinny_factors,
    skinny_forward,
)
from entrenar.autograd.quantized cimport QuantizedTensor
from entrenar.autograd.random cimport next_stream, random_key
from entrenar.autograd.ops.elementwise cimport add_rows
from entrenar.autograd.ops.reduce cimport sum_to
from entrenar.autograd.tape cimport (
    computed, grad_buffer, grad_pointer, needs_output, record, save_for_backward, saved_tensor, takes_grad,
    wants_grad,
)
from entrenar.autograd.arguments cimport checked_number
from entrenar.autograd.tensor cimport (
    BFLOAT16, FLOAT32, MAX_DIMS, Node, Tensor, as_tensor, check_float32, new_like, new_matrix, new_tensor, note_read,
)

from entrenar.errors import ConfigError, MemoryBudgetError, ShapeError


cdef int check_scratch(int status, str op) except -1:
    if status != 0:
        raise MemoryBudgetError(f"{op}: the machine has no memory left for scratch; use a smaller batch or sequence.")
    return 0


cdef int matrix_view_of(object weight, str op, matrix_view* s, Py_ssize_t* n, Py_ssize_t* k) except -1:
    cdef Tensor t
    cdef QuantizedTensor q
    if isinstance(weight, QuantizedTensor):
        q = <QuantizedTensor> weight
        s[0] = q.view
        n[0] = q.rows
        k[0] = q.columns
        return 0
    t = as_tensor(weight)
    note_read(t)
    if t.ndim != 2:
        raise ShapeError(f"{op}: the weight has shape {t.shape}, expected (out_features, in_features).")
    n[0] = t.dims[0]
    k[0] = t.dims[1]
    s[0] = f32_view(t.data, k[0], k[0])
    if t.weight_type != FLOAT32:
        s.type = WEIGHT_BF16 if t.weight_type == BFLOAT16 else WEIGHT_F16
    return 0


cdef Tensor output_of(Tensor x, Py_ssize_t last):
    """Uninitialised: the shape of x with `last` as its last axis."""
    cdef Py_ssize_t[MAX_DIMS] dims
    cdef int i
    for i in range(x.ndim - 1):
        dims[i] = x.dims[i]
    dims[x.ndim - 1] = last
    return new_tensor(x.ndim, dims)


cdef Py_ssize_t rows_of(Tensor x):
    """The product of all axes but the last."""
    cdef Py_ssize_t rows = 1
    cdef int i
    for i in range(x.ndim - 1):
        rows *= x.dims[i]
    return rows


cdef Tensor checked_input(object x, str op, Py_ssize_t n, Py_ssize_t k):
    cdef Tensor t = check_float32(as_tensor(x), op, "x")
    if t.ndim == 0 or t.dims[t.ndim - 1] != k:
        raise ShapeError(f"{op}: x of shape {t.shape} does not fit a weight of shape ({n}, {k}); "
                         f"its last axis must be {k}.")
    return t


# ---------------------------------------------------------------- linear, grouped and with low-rank updates
cdef enum:
    MAX_GROUP = 8


cdef class LowRankUpdate:
    """What `lora_linear` adds to a linear: scaling * (dropout(x) A^T) B^T.

    A (rank, in_features) and B (out_features, rank) are float32; `dropout` is the probability of a zero. Raises
    ConfigError for a dropout outside [0, 1).
    """
    cdef readonly Tensor lora_A
    cdef readonly Tensor lora_B
    cdef readonly double scaling
    cdef readonly double dropout

    def __cinit__(self, lora_A, lora_B, scaling, dropout=0.0):
        dropout = checked_number(dropout, "lora_linear", "dropout")
        if not 0.0 <= dropout < 1.0:
            raise ConfigError(f"lora_linear: dropout is {dropout}, expected a probability in [0, 1).")
        self.lora_A = check_float32(as_tensor(lora_A), "lora_linear", "lora_A")
        self.lora_B = check_float32(as_tensor(lora_B), "lora_linear", "lora_B")
        self.scaling = checked_number(scaling, "lora_linear", "scaling")
        self.dropout = dropout

    cdef int check_fits(self, Py_ssize_t n, Py_ssize_t k) except -1:
        cdef Tensor a = self.lora_A, b = self.lora_B
        if a.ndim != 2 or a.dims[1] != k or b.ndim != 2 or b.dims[0] != n or b.dims[1] != a.dims[0]:
            raise ShapeError(f"lora_linear: lora_A {a.shape} and lora_B {b.shape} do not fit a weight of shape "
                             f"({n}, {k}); expected (rank, {k}) and ({n}, rank).")
        return 0


cdef Tensor checked_bias(object bias, Py_ssize_t n, str op):
    cdef Tensor b
    if bias is None:
        return None
    b = check_float32(as_tensor(bias), op, "bias")
    if b.ndim != 1 or b.dims[0] != n:
        raise ShapeError(f"{op}: bias has shape {b.shape}, expected ({n},).")
    return b


cdef int products_of(Tensor x, gemm_operand_b* operands, int count, Py_ssize_t k, list biases, list outputs,
                     str op) except -1:
    """Append x weight^T + bias for each weight to `outputs`, without the graph; x is packed once for all."""
    cdef Py_ssize_t m = rows_of(x)
    cdef int i, status
    cdef Tensor out, bias
    for i in range(count):
        out = output_of(x, operands[i].n)
        outputs.append(out)
        operands[i].c = out.data
    if count == 1 and not needs_output(out):
        memset(out.data, 0, <size_t> out.nbytes)
        return 0
    with nogil:
        status = grouped_linear_forward(operands, count, x.data, m, k)
    check_scratch(status, op)
    for i in range(count):
        bias = biases[i]
        if bias is not None:
            add_rows(<Tensor> outputs[i], bias)
    return 0


cdef list linears(object x, list weights, list biases, list updates, str op):
    """The outputs of `grouped_linear`, recorded: a node each, so that backward takes them newest first."""
    cdef matrix_view[MAX_GROUP] views
    cdef gemm_operand_b[MAX_GROUP] operands
    cdef Py_ssize_t n = 0, k = 0
    cdef int count = len(weights), i
    cdef Tensor t = None
    cdef list outputs = []
    for i in range(count):
        if not isinstance(weights[i], QuantizedTensor):
            weights[i] = as_tensor(weights[i])
        matrix_view_of(weights[i], op, &views[i], &n, &k)
        operands[i].b = &views[i]
        operands[i].n = n
        t = checked_input(x if t is None else t, op, n, k)
        biases[i] = checked_bias(biases[i], n, op)
        if updates[i] is not None:
            (<LowRankUpdate?> updates[i]).check_fits(n, k)
    products_of(t, operands, count, k, biases, outputs, op)
    for i in range(count):
        if updates[i] is None:
            record_linear(<Tensor> outputs[i], t, weights[i], <Tensor> biases[i])
        else:
            add_low_rank(<Tensor> outputs[i], t, weights[i], <Tensor> biases[i], <LowRankUpdate> updates[i])
    for i in range(count):
        computed(<Tensor> outputs[i], "linear" if updates[i] is None else "lora_linear", weights[i])
    return outputs


cdef int bias_backward(Node bias, Tensor grad) except -1:
    """dbias (n,) = the sum of dy (..., n) over its rows."""
    return sum_to(bias, grad, 1) if takes_grad(bias) else 0


cdef class LinearNode(Node):
    cdef object x  # from save_for_backward; None where the weight takes no gradient
    cdef object weight
    cdef Py_ssize_t rows

    cdef int backward(self, Tensor grad) except -1:
        cdef Tensor x, dx, dw
        cdef matrix_view view
        cdef Py_ssize_t n, k, m = self.rows
        cdef bint accumulate
        cdef int status
        matrix_view_of(self.weight, "linear", &view, &n, &k)
        bias_backward(self.inputs[2], grad)
        if takes_grad(self.inputs[0]):
            dx = grad_buffer(self.inputs[0], &accumulate)
            with nogil:
                status = linear_backward_input(dx.data, grad.data, &view, m, n, k, accumulate)
            check_scratch(status, "linear")
        if takes_grad(self.inputs[1]):
            x = saved_tensor(self.x)
            dw = grad_buffer(self.inputs[1], &accumulate)
            with nogil:
                status = linear_backward_weight(dw.data, grad.data, x.data, m, n, k, accumulate)
            check_scratch(status, "linear")
        return 0


cdef int record_linear(Tensor out, Tensor x, object weight, Tensor bias) except -1:
    cdef Tensor w = <Tensor> weight if isinstance(weight, Tensor) else None
    cdef LinearNode node
    if wants_grad(x) or wants_grad(w) or wants_grad(bias):
        node = LinearNode.__new__(LinearNode)
        node.x = save_for_backward(x) if wants_grad(w) else None
        node.weight = weight
        node.rows = rows_of(x)
        record(out, node, (x, w, bias))
    return 0


def grouped_linear(x, weights, biases=None, updates=None):
    """`linear` of the same x with each of 1 to 8 weights; x is packed for their multiplications once.

    x (..., k) and weights (n_i, k) give a list of y_i (..., n_i); `biases` and `updates`, where given, hold a bias
    (n_i,) or None, and a LowRankUpdate or None, for each weight. The bits are those of `linear` and `lora_linear` one
    by one. Raises ShapeError where the shapes or the numbers of weights, biases and updates do not fit, ConfigError
    for what is no weight or no LowRankUpdate.
    """
    cdef list listed = listed_or_none(weights, None, "weights")
    cdef Py_ssize_t count = len(listed)
    if not 1 <= count <= MAX_GROUP:
        raise ShapeError(f"grouped_linear: {count} weights, expected 1 to {MAX_GROUP}.")
    cdef list vectors = listed_or_none(biases, count, "biases"), low_rank = listed_or_none(updates, count, "updates")
    for update in low_rank:
        if update is not None and not isinstance(update, LowRankUpdate):
            raise ConfigError(f"grouped_linear: an update is {type(update).__name__}, expected a LowRankUpdate or "
                              "None.")
    return linears(x, listed, vectors, low_rank, "grouped_linear")


cdef list listed_or_none(object items, object count, str name):
    """The items as a list of `count`; `count` times None where there are none."""
    if items is None and count is not None:
        return [None] * count
    if not isinstance(items, (list, tuple)):
        raise ConfigError(f"grouped_linear: {name} must be a list, not {type(items).__name__}.")
    if count is not None and len(items) != count:
        raise ShapeError(f"grouped_linear: {len(items)} {name} for {count} weights, expected one each.")
    return list(items)


def linear(x, weight, bias=None):
    """y (..., n) = x (..., k) weight^T + bias, for a weight (n, k) and a bias (n,).

    The weight is a float32 Tensor (which takes a gradient), one of 16 bits or a QuantizedTensor (frozen: dequantized
    inside the multiplication, never as a whole); the bias is float32, with a gradient or frozen. Raises ShapeError
    where the shapes do not fit.
    """
    return linears(x, [weight], [bias], [None], "linear")[0]


# ---------------------------------------------------------------- LoRA
cdef skinny_factors factors_of(Tensor a, Tensor b, float scale, Py_ssize_t m) noexcept:
    cdef skinny_factors f
    f.a, f.b, f.scale = a.data, b.data, scale
    f.n, f.k, f.r = b.dims[0], a.dims[1], a.dims[0]
    f.m = m if f.n or f.k or f.r else 0  # rows without an element may be any number
    return f


cdef class LoRALinearNode(Node):
    cdef float scaling
    cdef float dropout
    cdef uint64_t key
    cdef uint64_t stream
    cdef object x  # from save_for_backward; None where neither A nor the weight takes a gradient
    cdef object weight
    cdef Tensor lora_A
    cdef Tensor lora_B
    cdef Tensor h  # (rows, rank)

    cdef int backward(self, Tensor grad) except -1:
        # y = x W^T + bias + h B^T with h = s dropout(x) A^T saved; g = s dy B: dB = dy^T h, dA = g^T dropout(x),
        # dx = dy W + dropout'(g A)
        cdef Tensor a = self.lora_A, b = self.lora_B, h = self.h, g, target, dropped, data = None
        cdef matrix_view view
        cdef Py_ssize_t n, k, m = h.dims[0], r = a.dims[0]
        cdef bint accumulate = False
        cdef float* db
        cdef int status = 0
        matrix_view_of(self.weight, "lora_linear", &view, &n, &k)
        bias_backward(self.inputs[4], grad)
        if self.x is not None:
            data = saved_tensor(self.x)
        cdef skinny_factors factors = factors_of(a, b, self.scaling, m)
        g = new_matrix(m, r)
        m = m if n or k or r else 0  # no row has an element
        db = grad_pointer(self.inputs[2], &accumulate)
        with nogil:
            status |= skinny_backward(g.data, db, grad.data, h.data, &factors, accumulate)
        if takes_grad(self.inputs[1]):
            target = grad_buffer(self.inputs[1], &accumulate)
            dropped = data
            if self.dropout > 0:
                dropped = new_like(data)
                dropout_forward(dropped.data, data.data, data.size, self.dropout, self.key, self.stream, False)
            with nogil:
                status |= skinny_backward_a(target.data, g.data, dropped.data, &factors, accumulate)
        if takes_grad(self.inputs[0]):
            target = grad_buffer(self.inputs[0], &accumulate)
            with nogil:
                status |= linear_backward_input(target.data, grad.data, &view, m, n, k, accumulate)
            if self.dropout > 0:
                dropped = new_like(target)
                with nogil:
                    status |= skinny_backward_input(dropped.data, g.data, &factors, False)
                dropout_forward(target.data, dropped.data, target.size, self.dropout, self.key, self.stream,
                                True)
            else:
                with nogil:
                    status |= skinny_backward_input(target.data, g.data, &factors, True)
        if takes_grad(self.inputs[3]):
            target = grad_buffer(self.inputs[3], &accumulate)
            with nogil:
                status |= linear_backward_weight(target.data, grad.data, data.data, m, n, k, accumulate)
        return check_scratch(status, "lora_linear")


cdef int add_low_rank(Tensor out, Tensor x, object weight, Tensor bias, LowRankUpdate update) except -1:
    """out += scaling * (dropout(x) A^T) B^T, recorded with the product that `out` holds as one node."""
    cdef Tensor a = update.lora_A, b = update.lora_B, dropped = x
    cdef Py_ssize_t m = rows_of(x), r = a.dims[0]
    cdef Tensor h = new_matrix(m, r)
    cdef uint64_t key = 0, stream = 0
    cdef float factor = update.scaling
    cdef LoRALinearNode node
    cdef int status
    if update.dropout > 0:
        key = random_key()
        stream = next_stream()
        dropped = new_like(x)
        dropout_forward(dropped.data, x.data, x.size, update.dropout, key, stream, False)
    cdef skinny_factors factors = factors_of(a, b, factor, m)
    with nogil:
        status = skinny_forward(out.data, h.data, dropped.data, &factors)
    check_scratch(status, "lora_linear")
    cdef Tensor w = <Tensor> weight if isinstance(weight, Tensor) else None
    if wants_grad(x) or wants_grad(a) or wants_grad(b) or wants_grad(w) or wants_grad(bias):
        node = LoRALinearNode.__new__(LoRALinearNode)
        node.scaling = factor
        node.dropout = update.dropout
        node.key = key
        node.stream = stream
        node.x = save_for_backward(x) if wants_grad(a) or wants_grad(w) else None
        node.weight, node.lora_A, node.lora_B, node.h = weight, a, b, h
        record(out, node, (x, a, b, w, bias))
    return 0


def lora_linear(x, weight, lora_A, lora_B, scaling, dropout=0.0, bias=None):
    """y (..., n) = x W^T + bias + scaling * (dropout(x) A^T) B^T, one node that saves x once and the small x A^T.

    x (..., k), W (n, k) of any weight type, A (r, k), B (n, r) and bias (n,) float32. `dropout` is the
    probability of a zero; its mask is drawn again in backward. Hu et al., "LoRA", 2021 (arXiv 2106.09685).
    Raises ShapeError where the shapes do not fit, ConfigError for a dropout outside [0, 1).
    """
    return linears(x, [weight], [bias], [LowRankUpdate(lora_A, lora_B, scaling, dropout)], "lora_linear")[0]


# ---------------------------------------------------------------- matmul
cdef struct Batch:
    # where the matrices of each operand lie: offsets follow from a broadcast index over the leading axes
    int ndim
    Py_ssize_t count
    Py_ssize_t[MAX_DIMS] dims
    Py_ssize_t[MAX_DIMS] a_strides
    Py_ssize_t[MAX_DIMS] b_strides


cdef int fill_batch(Batch* batch, Tensor a, Tensor b) except -1:
    """Broadcast the leading axes of a (..., m, k) and b (..., k, n); strides are 0 along broadcast axes."""
    cdef int i, ia, ib, axes = max(a.ndim, b.ndim) - 2
    cdef Py_ssize_t da, db, sa = a.dims[a.ndim - 1] * a.dims[a.ndim - 2], sb = b.dims[b.ndim - 1] * b.dims[b.ndim - 2]
    batch.ndim = axes
    batch.count = 1
    for i in range(axes - 1, -1, -1):
        ia = i - (axes - (a.ndim - 2))
        ib = i - (axes - (b.ndim - 2))
        da = a.dims[ia] if ia >= 0 else 1
        db = b.dims[ib] if ib >= 0 else 1
        if da != db and da != 1 and db != 1:
            raise ShapeError(f"matmul: the leading axes of {a.shape} and {b.shape} do not broadcast.")
        batch.dims[i] = db if da == 1 else da
        batch.a_strides[i] = 0 if da == 1 else sa
        batch.b_strides[i] = 0 if db == 1 else sb
        sa *= da
        sb *= db
        batch.count *= batch.dims[i]
    return 0


cdef void offsets(const Batch* batch, Py_ssize_t index, Py_ssize_t* a, Py_ssize_t* b) noexcept nogil:
    cdef int i
    a[0] = 0
    b[0] = 0
    for i in range(batch.ndim - 1, -1, -1):
        a[0] += index % batch.dims[i] * batch.a_strides[i]
        b[0] += index % batch.dims[i] * batch.b_strides[i]
        index //= batch.dims[i]


cdef class MatmulNode(Node):
    cdef Batch batch
    cdef Tensor a
    cdef Tensor b

    cdef int backward(self, Tensor grad) except -1:
        if takes_grad(self.inputs[0]):
            self.operand(grad, self.inputs[0], self.b, True)
        if takes_grad(self.inputs[1]):
            self.operand(grad, self.inputs[1], self.a, False)
        return 0

    cdef int operand(self, Tensor grad, Node target, Tensor other, bint is_a) except -1:
        """dA (m, k) = dC B^T, or dB (k, n) = A^T dC; a broadcast matrix gets the sum over the batch in order."""
        cdef bint accumulate
        cdef Tensor out = grad_buffer(target, &accumulate)
        cdef Py_ssize_t m = grad.dims[grad.ndim - 2], n = grad.dims[grad.ndim - 1], i, at, other_at
        cdef Py_ssize_t k = other.dims[other.ndim - 2] if is_a else other.dims[other.ndim - 1]
        cdef matrix_view g, o
        cdef int status = 0
        if not accumulate:
            for i in range(out.size):
                out.data[i] = 0.0
        for i in range(self.batch.count if grad.size and out.size else 0):
            if is_a:
                offsets(&self.batch, i, &at, &other_at)
            else:
                offsets(&self.batch, i, &other_at, &at)
            g = f32_view(grad.data + i * m * n, n, n)
            if is_a:
                o = f32_view(other.data + other_at, n, n)
                with nogil:
                    status |= gemm(NT, out.data + at, &g, &o, m, k, n, True)
            else:
                o = f32_view(other.data + other_at, k, k)
                with nogil:
                    status |= gemm(TN, out.data + at, &o, &g, k, n, m, True)
        return check_scratch(status, "matmul")


cdef Tensor product(Tensor a, Tensor b):
    """C (..., m, n) = A (..., m, k) B (..., k, n) for operands of at least two axes."""
    cdef Batch batch
    cdef Py_ssize_t m = a.dims[a.ndim - 2], k = a.dims[a.ndim - 1], n = b.dims[b.ndim - 1], i, a_at, b_at
    cdef Py_ssize_t[MAX_DIMS] dims
    cdef matrix_view sa, sb
    cdef int status = 0
    cdef MatmulNode node
    if b.dims[b.ndim - 2] != k:
        raise ShapeError(f"matmul: {a.shape} and {b.shape} do not fit: {k} columns meet {b.dims[b.ndim - 2]} rows.")
    fill_batch(&batch, a, b)
    for i in range(batch.ndim):
        dims[i] = batch.dims[i]
    dims[batch.ndim] = m
    dims[batch.ndim + 1] = n
    cdef Tensor out = new_tensor(batch.ndim + 2, dims)
    with nogil:
        for i in range(batch.count if out.size else 0):
            offsets(&batch, i, &a_at, &b_at)
            sa = f32_view(a.data + a_at, k, k)
            sb = f32_view(b.data + b_at, n, n)
            status |= gemm(NN, out.data + i * m * n, &sa, &sb, m, n, k, False)
    check_scratch(status, "matmul")
    if wants_grad(a) or wants_grad(b):
        node = MatmulNode.__new__(MatmulNode)
        node.batch = batch
        node.a, node.b = a, b
        record(out, node, (a, b))
    return computed(out, "matmul", None)


def matmul(a, b):
    """The matrix product of NumPy's `@`: 2-D matrices, stacks of them with broadcasting, and 1-D vectors.

    float32 only (a weight of another type goes through `linear`). Raises ShapeError, naming both shapes, where they
    do not fit.
    """
    cdef Tensor ta = check_float32(as_tensor(a), "matmul", "a"), tb = check_float32(as_tensor(b), "matmul", "b")
    if ta.ndim == 0 or tb.ndim == 0:
        raise ShapeError(f"matmul: {ta.shape} and {tb.shape} do not fit: a scalar has no rows or columns; use "
                         "mul.")
    if ta.ndim > 1 and tb.ndim > 1:
        return product(ta, tb)
    from entrenar.autograd.ops.shape import reshape
    row = reshape(ta, (1,) + ta.shape) if ta.ndim == 1 else ta
    column = reshape(tb, tb.shape + (1,)) if tb.ndim == 1 else tb
    if (<Tensor> row).dims[(<Tensor> row).ndim - 1] != (<Tensor> column).dims[(<Tensor> column).ndim - 2]:
        raise ShapeError(f"matmul: {ta.shape} and {tb.shape} do not fit.")
    out = product(row, column)
    shape = list(out.shape)
    if ta.ndim == 1:
        del shape[-2]
    if tb.ndim == 1:
        del shape[-1]
    return reshape(out, tuple(shape))
