"""embedding: rows of a table by token id."""
from libc.stdint cimport int64_t

import numpy as np

from entrenar._kernels.embedding cimport embedding_backward, embedding_forward
from entrenar._kernels.simd.matrix_view cimport matrix_view
from entrenar.autograd.ops.matmul cimport matrix_view_of
from entrenar.autograd.quantized cimport QuantizedTensor
from entrenar.autograd.tape cimport computed, grad_buffer, record, takes_grad, wants_grad
from entrenar.autograd.arguments cimport checked_array, checked_integer
from entrenar.autograd.tensor cimport MAX_DIMS, Node, Tensor, as_tensor, new_tensor

from entrenar.errors import ShapeError


cdef object checked_indices(object values, str op, str name, Py_ssize_t bound, object ignored):
    array = checked_array(values, op, name)
    if array.dtype.kind not in "iu":
        raise ShapeError(f"{op}: {name} must be integers, not {array.dtype}.")
    array = np.asarray(array, dtype=np.int64, order="C")  # ascontiguousarray would give a scalar an axis
    wrong = (array < 0) | (array >= bound)
    if ignored is not None:
        wrong &= array != ignored
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ShapeError(f"{op}: {name}{list(where)} is {array[where]}, outside the vocabulary of {bound} entries.")
    return array


cdef class EmbeddingNode(Node):
    cdef int64_t padding
    cdef object tokens

    cdef int backward(self, Tensor grad) except -1:
        cdef Node table = self.inputs[0]
        if not takes_grad(table):
            return 0
        cdef const int64_t[::1] tokens = self.tokens
        cdef Py_ssize_t n = tokens.shape[0]
        cdef const int64_t* first = &tokens[0] if n else NULL
        cdef bint accumulate
        cdef Tensor dtable = grad_buffer(table, &accumulate)
        if dtable.size == 0:
            return 0
        with nogil:
            embedding_backward(dtable.data, grad.data, first, n, table.dims[0], table.dims[1], self.padding,
                               accumulate)
        return 0


def embedding(tokens, weight, padding=None):
    """y (..., hidden) = weight[tokens], for integer tokens of any shape and a table (vocabulary, hidden).

    A float32 table takes a gradient, but for the row `padding` where that is given (as `padding_idx` of PyTorch); one
    of another weight type is frozen. Raises ShapeError for a token outside the table,
    naming the id and its place, and for a `padding` outside it.
    """
    cdef matrix_view table
    cdef Py_ssize_t vocabulary, hidden, n
    cdef Py_ssize_t[MAX_DIMS] dims
    cdef int i
    if not isinstance(weight, QuantizedTensor):
        weight = as_tensor(weight)
    matrix_view_of(weight, "embedding", &table, &vocabulary, &hidden)
    array = checked_indices(tokens, "embedding", "tokens", vocabulary, None)
    if array.ndim + 1 > MAX_DIMS:
        raise ShapeError(f"embedding: tokens have {array.ndim} axes; at most {MAX_DIMS - 1} are supported.")
    for i in range(array.ndim):
        dims[i] = array.shape[i]
    dims[array.ndim] = hidden
    flat = array.reshape(-1)
    cdef const int64_t[::1] ids = flat
    n = ids.shape[0]
    cdef const int64_t* first = &ids[0] if n else NULL
    cdef Tensor out = new_tensor(array.ndim + 1, dims)
    with nogil:
        embedding_forward(out.data, &table, first, n, hidden)
    cdef Tensor w = <Tensor> weight if isinstance(weight, Tensor) else None
    if padding is not None and not 0 <= checked_integer(padding, "embedding", "padding") < vocabulary:
        raise ShapeError(f"embedding: padding is {padding}, outside the vocabulary of {vocabulary} entries.")
    cdef EmbeddingNode node
    if wants_grad(w):
        node = EmbeddingNode.__new__(EmbeddingNode)
        node.padding = -1 if padding is None else padding
        node.tokens = flat
        record(out, node, (w,))
    return computed(out, "embedding", weight)
