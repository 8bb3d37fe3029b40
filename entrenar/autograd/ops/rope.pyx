"""Rotary position embedding on the tape, and its table of cosines and sines."""
import functools

import numpy as np

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_STRIDES, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t

from entrenar._kernels.rope cimport rope_rotate
from entrenar.autograd.tape cimport computed, grad_buffer, record, takes_grad, wants_grad
from entrenar.autograd.arguments cimport checked_array, checked_integer
from entrenar.autograd.tensor cimport Node, Tensor, as_tensor, check_float32, new_like, same_shape, shape_str

from entrenar.autograd.tensor import Tensor as PyTensor
from entrenar.errors import ShapeError


cdef object INT64 = np.dtype(np.int64)  # the one object that NumPy has of it

cdef enum:
    MAX_POSITIONS = 1 << 28  # beyond which float32 angles are no longer apart


@functools.lru_cache(maxsize=8)
def _table(max_positions, frequencies, scale):
    angles = np.arange(max_positions, dtype=np.float64)[:, None] * np.frombuffer(frequencies, np.float64)
    return PyTensor(np.cos(angles) * scale), PyTensor(np.sin(angles) * scale)


def rope_table(max_positions, inv_freq, scale=1.0):
    """The cosines and sines of position * inv_freq, times scale: two float32 tensors (max_positions, head size / 2).

    `inv_freq` (head size / 2) holds radians per position: theta^(-2 i / head size) (Su et al., "RoFormer", 2021),
    scaled as the model's rope scaling says, `scale` what that makes of q and k. Computed in float64 and rounded once;
    the last tables are shared: treat them as read-only. Raises ShapeError for an inv_freq that is no vector or a
    max_positions out of range.
    """
    frequencies = checked_array(inv_freq, "rope_table", "inv_freq")
    if frequencies.dtype.kind not in "iuf":
        raise ShapeError(f"rope_table: inv_freq must hold numbers, found {frequencies.dtype}.")
    frequencies = frequencies.astype(np.float64)
    if frequencies.ndim != 1:
        raise ShapeError(f"rope_table: inv_freq must be a vector of head size / 2 numbers, found shape "
                         f"{frequencies.shape}.")
    max_positions = checked_integer(max_positions, "rope_table", "max_positions")
    if not 0 <= max_positions <= MAX_POSITIONS:
        raise ShapeError(f"rope_table: max_positions must lie between 0 and {MAX_POSITIONS}, found {max_positions}.")
    return _table(max_positions, frequencies.tobytes(), float(scale))


cdef const int64_t* elements(object array) except? NULL:
    """Where a contiguous int64 array's elements lie; its own `ctypes` takes longer than the rotation of a token."""
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, PyBUF_SIMPLE)
    PyBuffer_Release(&view)  # the array stays, and with it its memory
    return <const int64_t*> view.buf


cdef object check_positions(positions, Tensor x, Py_ssize_t limit, bint copies):
    """The positions as contiguous int64 (batch, seq), or None for 0, 1, ..., seq - 1; all of them inside the table."""
    if positions is None:
        if x.dims[1] > limit:
            raise ShapeError(f"rope: position {x.dims[1] - 1} of x {shape_str(x)} lies outside the table of {limit} "
                             "positions; build a longer rope_table.")
        return None
    if not copies and are_int64(positions, x):
        check_range(positions, positions, x, limit)
        return positions
    # a copy where backward needs it: the caller may write into the array before that
    array = np.asarray(positions) if isinstance(positions, np.ndarray) and not copies else checked_array(
        positions, "rope", "positions")
    if array.dtype.kind not in "iu" or array.shape != (x.dims[0], x.dims[1]):
        raise ShapeError(f"rope: positions must be integers of shape {(x.dims[0], x.dims[1])}, found {array.dtype} of "
                         f"shape {array.shape}.")
    index = np.ascontiguousarray(array, dtype=np.int64)  # an unsigned position beyond int64 turns negative
    check_range(index, array, x, limit)
    return index


cdef bint are_int64(object positions, Tensor x) except -1:
    """Whether they are a contiguous int64 array (batch, seq); asking NumPy costs more than a token's rotation."""
    cdef Py_buffer view
    if type(positions) is not np.ndarray or positions.dtype is not INT64:
        return False
    PyObject_GetBuffer(positions, &view, PyBUF_STRIDES)
    cdef bint same = (view.ndim == 2 and view.shape[0] == x.dims[0] and view.shape[1] == x.dims[1]
                      and view.strides[1] == sizeof(int64_t)
                      and view.strides[0] == x.dims[1] * <Py_ssize_t> sizeof(int64_t))
    PyBuffer_Release(&view)
    return same


cdef int check_range(object index, object array, Tensor x, Py_ssize_t limit) except -1:
    """ShapeError where one of the contiguous int64 positions, given as `array`, lies outside the table."""
    cdef const int64_t* first = elements(index)
    cdef Py_ssize_t i
    for i in range(x.dims[0] * x.dims[1]):  # NumPy's min and max cost more than the rotation of one token
        if not 0 <= first[i] < limit:
            row, column = divmod(i, x.dims[1])
            raise ShapeError(f"rope: position {array[row, column]} of token ({row}, {column}) lies outside the table "
                             f"of {limit} positions; build a longer rope_table.")
    return 0


cdef int rotate(Tensor y, Tensor x, Tensor cos, Tensor sin, object positions, float sign, bint accumulate) except -1:
    cdef Py_ssize_t tokens = x.dims[0] * x.dims[1] if x.size else 0
    cdef const int64_t* index = NULL
    if positions is not None:
        index = elements(positions)
    cdef Py_ssize_t half = cos.dims[1]
    with nogil:
        rope_rotate(y.data, x.data, cos.data, sin.data, index, tokens, x.dims[1], x.dims[2], half,
                    x.dims[3] - 2 * half, sign, accumulate)
    return 0


cdef class RopeNode(Node):
    cdef object positions
    cdef Tensor cos
    cdef Tensor sin

    cdef int backward(self, Tensor grad) except -1:
        cdef bint accumulate
        if not takes_grad(self.inputs[0]):
            return 0
        cdef Tensor dx = grad_buffer(self.inputs[0], &accumulate)
        return rotate(dx, grad, self.cos, self.sin, self.positions, -1, accumulate)


def rope(x, cos, sin, positions=None, partial=False):
    """Rotate each pair (x[i], x[i + head size / 2]) of every head by the angle of the token's position.

    x (batch, seq, heads, head size), float32; cos, sin from `rope_table`, (positions, head size / 2); `positions`,
    integers (batch, seq), or None for 0, 1, ..., seq - 1. Gives x's shape. The half-split pairing of Hugging Face LLaMA
    checkpoints (`rotate_half`); backward is the inverse rotation. cos and sin receive no gradient. Where `partial` is
    set, a table of fewer columns rotates the pairs (x[i], x[i + columns]) and copies the rest of a head.

    Raises ShapeError where shapes do not fit or a position lies outside the table, ConfigError for bfloat16.
    """
    cdef Tensor a = check_float32(as_tensor(x), "rope", "x")
    cdef Tensor c = check_float32(as_tensor(cos), "rope", "cos"), s = check_float32(as_tensor(sin), "rope", "sin")
    cdef RopeNode node
    if a.ndim != 4 or (a.dims[3] % 2 and not partial):
        raise ShapeError(f"rope: x must have shape (batch, seq, heads, even head size), found {shape_str(a)}.")
    if c.ndim != 2 or not same_shape(s, c) or 2 * c.dims[1] > a.dims[3] or (
            2 * c.dims[1] != a.dims[3] and not partial):
        raise ShapeError(f"rope: cos {shape_str(c)} and sin {shape_str(s)} must both have shape (positions, "
                         f"{a.dims[3] // 2}) for x of shape {shape_str(a)}.")
    index = check_positions(positions, a, c.dims[0], wants_grad(a))
    cdef Tensor out = new_like(a)
    rotate(out, a, c, s, index, 1, False)
    if wants_grad(a):
        node = RopeNode.__new__(RopeNode)
        node.positions = index
        node.cos, node.sin = c, s
        record(out, node, (a,))
    return computed(out, "rope", None)
