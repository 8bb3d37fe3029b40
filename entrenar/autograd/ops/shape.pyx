"""reshape, transpose, slice and concatenate. reshape shares memory; the others copy."""
from entrenar._kernels.elementwise cimport fill
from entrenar._kernels.shape cimport strided_copy
from entrenar.autograd.tape cimport add_grad, computed, grad_buffer, record, takes_grad, wants_grad
from entrenar.autograd.tensor cimport MAX_DIMS, Node, Tensor, alias_as, as_tensor, check_float32, new_tensor, shape_str

import builtins

from entrenar.errors import ShapeError


class IndexRangeError(ShapeError, IndexError):
    """An integer index outside its axis; an IndexError too, so that iteration over a tensor ends."""


cdef void _contiguous(int ndim, const Py_ssize_t* dims, Py_ssize_t* strides) noexcept:
    cdef Py_ssize_t stride = 1
    cdef int i
    for i in range(ndim - 1, -1, -1):
        strides[i] = stride
        stride *= dims[i]


cdef Py_ssize_t _integer(object value, str op, str what) except? -1:
    try:
        return value.__index__()
    except (AttributeError, TypeError, OverflowError):
        raise ShapeError(f"{op}: {what} must be an integer, not {value!r}.") from None


cdef int _axis(object value, int ndim, str op, str shape) except -1:
    cdef Py_ssize_t axis = _integer(value, op, "an axis")
    if not -ndim <= axis < ndim:
        raise ShapeError(f"{op}: axis {axis} lies outside shape {shape}, which has {ndim} axes.")
    return <int> (axis + ndim if axis < 0 else axis)


# ---------------------------------------------------------------------- reshape
cdef class ReshapeNode(Node):
    cdef int backward(self, Tensor grad) except -1:
        cdef Node x = self.inputs[0]
        return add_grad(x, alias_as(grad, x.ndim, x.dims)) if takes_grad(x) else 0


def reshape(x, shape):
    """x with another shape of the same number of elements, sharing x's memory; one length may be -1.

    Raises ShapeError where the sizes differ.
    """
    cdef Tensor a = as_tensor(x), out
    cdef Py_ssize_t[MAX_DIMS] dims
    cdef Py_ssize_t size = 1
    cdef int i, unknown = -1
    shape = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    if len(shape) > MAX_DIMS:
        raise ShapeError(f"reshape: a tensor has at most {MAX_DIMS} axes, not {len(shape)}.")
    for i in range(len(shape)):
        dims[i] = _integer(shape[i], "reshape", "a length")
        if dims[i] == -1 and unknown < 0:
            unknown = i
        elif dims[i] < 0:
            raise ShapeError(f"reshape: {shape} has a negative length, or more than one -1.")
        else:
            size *= dims[i]
    if unknown >= 0 and size > 0 and a.size % size == 0:
        dims[unknown] = a.size // size
        size = a.size
    if size != a.size or (unknown >= 0 and dims[unknown] < 0):
        raise ShapeError(f"reshape: shape {shape_str(a)} has {a.size} elements, which do not fit shape {shape}.")
    out = alias_as(a, len(shape), dims)
    out.last_linear = a.last_linear
    if wants_grad(a):
        record(out, ReshapeNode.__new__(ReshapeNode), (a,))
    return out


# ---------------------------------------------------------------------- transpose
cdef class TransposeNode(Node):
    cdef int[MAX_DIMS] order

    cdef int backward(self, Tensor grad) except -1:
        cdef Node x = self.inputs[0]
        cdef Tensor dx
        cdef Py_ssize_t[MAX_DIMS] strides
        cdef Py_ssize_t[MAX_DIMS] grad_strides
        cdef Py_ssize_t[MAX_DIMS] permuted
        cdef bint accumulate
        cdef int i
        if not takes_grad(x):
            return 0
        dx = grad_buffer(x, &accumulate)
        _contiguous(x.ndim, x.dims, strides)
        _contiguous(grad.ndim, grad.dims, grad_strides)
        for i in range(x.ndim):
            permuted[self.order[i]] = grad_strides[i]
        with nogil:
            strided_copy(dx.data, strides, grad.data, permuted, x.ndim, x.dims, accumulate)
        return 0


def transpose(x, axes=None):
    """A copy of x whose axis i is x's axis axes[i]; the axes reversed where `axes` is None.

    Raises ShapeError unless `axes` is a permutation of x's axes.
    """
    cdef Tensor a = check_float32(as_tensor(x), "transpose", "x"), out
    cdef TransposeNode node = TransposeNode.__new__(TransposeNode)
    cdef Py_ssize_t[MAX_DIMS] dims
    cdef Py_ssize_t[MAX_DIMS] strides
    cdef Py_ssize_t[MAX_DIMS] permuted
    cdef Py_ssize_t[MAX_DIMS] out_strides
    cdef int i
    if axes is None:
        axes = tuple(range(a.ndim - 1, -1, -1))
    elif not isinstance(axes, (tuple, list)):
        raise ShapeError(f"transpose: axes must be None or a tuple of integers, not {axes!r:.80}.")
    elif len(axes) == 1 and isinstance(axes[0], (tuple, list)):
        axes = axes[0]
    order = [_axis(axis, a.ndim, "transpose", shape_str(a)) for axis in axes]
    if sorted(order) != list(range(a.ndim)):
        raise ShapeError(f"transpose: {tuple(axes)} is no permutation of the axes of shape {shape_str(a)}.")
    _contiguous(a.ndim, a.dims, strides)
    for i in range(a.ndim):
        node.order[i] = order[i]
        dims[i] = a.dims[node.order[i]]
        permuted[i] = strides[node.order[i]]
    out = new_tensor(a.ndim, dims)
    _contiguous(a.ndim, dims, out_strides)
    with nogil:
        strided_copy(out.data, out_strides, a.data, permuted, a.ndim, dims, False)
    if wants_grad(a):
        record(out, node, (a,))
    return computed(out, "transpose", None)


# ---------------------------------------------------------------------- slice
cdef class SliceNode(Node):
    cdef Py_ssize_t offset
    cdef int ndim
    cdef Py_ssize_t[MAX_DIMS] strides

    cdef int backward(self, Tensor grad) except -1:
        cdef Tensor dx
        cdef Py_ssize_t[MAX_DIMS] grad_strides
        cdef bint accumulate
        if not takes_grad(self.inputs[0]):
            return 0
        dx = grad_buffer(self.inputs[0], &accumulate)
        _contiguous(grad.ndim, grad.dims, grad_strides)
        with nogil:
            if not accumulate:
                fill(dx.data, 0, dx.size)
            strided_copy(dx.data + self.offset, self.strides, grad.data, grad_strides, grad.ndim, grad.dims, accumulate)
        return 0


cdef list _full_index(Tensor x, object index):
    """The index with its ellipsis (or the missing axes) written out: one entry an axis, and the Nones."""
    items = list(index) if isinstance(index, tuple) else [index]
    for item in items:
        if item is not None and item is not Ellipsis and not isinstance(item, builtins.slice) and (
                isinstance(item, bool) or not hasattr(item, "__index__")):
            raise ShapeError(f"slice: an index is an integer, a slice, None or ..., not {item!r}.")
    used = len([item for item in items if item is not None and item is not Ellipsis])
    dots = [i for i in range(len(items)) if items[i] is Ellipsis]
    if used > x.ndim or len(dots) > 1:
        raise ShapeError(f"slice: {index!r} has too many indices for shape {shape_str(x)}.")
    at = dots[0] if dots else len(items)
    return items[:at] + [builtins.slice(None)] * (x.ndim - used) + items[at + 1:]


def slice(x, index):
    """x[index], a copy: integers, slices (any step), None and ... as in NumPy. Also written `x[...]`.

    Raises ShapeError (an IndexError too) for an integer outside its axis.
    """
    cdef Tensor a = check_float32(as_tensor(x), "slice", "x"), out
    cdef SliceNode node = SliceNode.__new__(SliceNode)
    cdef Py_ssize_t[MAX_DIMS] dims
    cdef Py_ssize_t[MAX_DIMS] strides
    cdef Py_ssize_t[MAX_DIMS] out_strides
    cdef Py_ssize_t start, step, position
    cdef int axis = 0, ndim = 0
    _contiguous(a.ndim, a.dims, strides)
    full = _full_index(a, index)
    if len([item for item in full if item is None or isinstance(item, builtins.slice)]) > MAX_DIMS:
        raise ShapeError(f"slice: the result of {index!r} would have more than {MAX_DIMS} axes.")
    for item in full:
        if item is None:
            dims[ndim] = 1
            node.strides[ndim] = 0
            ndim += 1
        elif isinstance(item, builtins.slice):
            try:
                start, stop, step = item.indices(a.dims[axis])
            except (TypeError, ValueError) as error:
                raise ShapeError(f"slice: {item!r} needs integers and a step other than 0 ({error}).") from None
            dims[ndim] = len(range(start, stop, step))
            node.strides[ndim] = strides[axis] * step
            node.offset += strides[axis] * start if dims[ndim] else 0
            ndim += 1
            axis += 1
        else:
            position = _integer(item, "slice", "an index")
            if not -a.dims[axis] <= position < a.dims[axis]:
                raise IndexRangeError(f"slice: index {position} lies outside axis {axis} of shape {shape_str(a)}.")
            node.offset += strides[axis] * (position + a.dims[axis] if position < 0 else position)
            axis += 1
    out = new_tensor(ndim, dims)
    _contiguous(ndim, dims, out_strides)
    with nogil:
        strided_copy(out.data, out_strides, a.data + node.offset, node.strides, ndim, dims, False)
    if wants_grad(a):
        record(out, node, (a,))
    return computed(out, "slice", None)


# ---------------------------------------------------------------------- concatenate
cdef class ConcatenateNode(Node):
    cdef int axis
    cdef list lengths  # of the tensors along the axis

    cdef int backward(self, Tensor grad) except -1:
        cdef Tensor dx
        cdef Py_ssize_t[MAX_DIMS] strides
        cdef Py_ssize_t[MAX_DIMS] grad_strides
        cdef Py_ssize_t at = 0
        cdef bint accumulate
        _contiguous(grad.ndim, grad.dims, grad_strides)
        for item, length in zip(self.inputs, self.lengths):
            if takes_grad(item):
                dx = grad_buffer(item, &accumulate)
                _contiguous(dx.ndim, dx.dims, strides)
                with nogil:
                    strided_copy(dx.data, strides, grad.data + at, grad_strides, dx.ndim, dx.dims, accumulate)
            at += <Py_ssize_t> length * grad_strides[self.axis]
        return 0


def concatenate(tensors, axis=0):
    """The tensors joined along an existing axis; their other axes have equal lengths.

    Raises ShapeError where they do not, or where there is nothing to join.
    """
    if not isinstance(tensors, (tuple, list)):
        raise ShapeError(f"concatenate: needs a list of tensors, not {type(tensors).__name__}.")
    cdef list parts = [check_float32(as_tensor(t), "concatenate", f"tensor {i}") for i, t in enumerate(tensors)]
    cdef Tensor first, x, out
    cdef Py_ssize_t[MAX_DIMS] dims
    cdef Py_ssize_t[MAX_DIMS] strides
    cdef Py_ssize_t[MAX_DIMS] out_strides
    cdef Py_ssize_t at = 0
    cdef ConcatenateNode node
    cdef bint wanted = False
    cdef int i, j
    if not parts:
        raise ShapeError("concatenate: there are no tensors to join.")
    first = <Tensor> parts[0]
    i = _axis(axis, first.ndim, "concatenate", shape_str(first))
    for j in range(first.ndim):
        dims[j] = first.dims[j]
    dims[i] = 0
    for number, item in enumerate(parts):
        x = <Tensor> item
        if x.ndim != first.ndim or [d for j, d in enumerate(x.shape) if j != i] != [
                d for j, d in enumerate(first.shape) if j != i]:
            raise ShapeError(f"concatenate: tensor {number} has shape {shape_str(x)}, which does not fit "
                             f"{shape_str(first)} of tensor 0 along axis {i}.")
        dims[i] += x.dims[i]
        wanted = wanted or wants_grad(x)
    out = new_tensor(first.ndim, dims)
    _contiguous(out.ndim, dims, out_strides)
    for item in parts:
        x = <Tensor> item
        _contiguous(x.ndim, x.dims, strides)
        with nogil:
            strided_copy(out.data + at, out_strides, x.data, strides, x.ndim, x.dims, False)
        at += x.dims[i] * out_strides[i]
    if wanted:
        node = ConcatenateNode.__new__(ConcatenateNode)
        node.axis = i
        node.lengths = [item.shape[i] for item in parts]
        record(out, node, tuple(parts))
    return computed(out, "concatenate", None)
