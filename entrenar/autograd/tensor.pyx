"""Tensor: an aligned, C-contiguous buffer with a shape, a dtype, a gradient and the node that computed it.

float32 is the dtype of everything with a gradient; bfloat16 and float16 are storage of frozen weights. A tensor shares
memory with NumPy through the buffer protocol and with other libraries through DLPack, without a copy.
"""
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_WRITABLE
from libc.string cimport memcmp, memcpy

from entrenar.autograd.arguments cimport array_of_numbers, checked_flag, unresized

import os
from gc import get_referents
from threading import RLock

import numpy as np

from entrenar.errors import ConfigError, GraphError, MemoryBudgetError, ShapeError

cdef extern from "allocator.h" nogil:
    void* allocator_take(size_t nbytes, int* size_class)
    void allocator_give(void* memory, int size_class)
    void allocator_trim(size_t remaining)
    size_t allocator_in_use()
    size_t allocator_peak()
    size_t allocator_cached()
    void allocator_reset_peak()

cdef extern from *:
    """
    static _Thread_local unsigned int newest_unused = 0;

    // What the collector does to a cycle: every attribute of the object that is an object becomes None.
    static void clear_attributes(PyObject *object) {
        if (Py_TYPE(object)->tp_clear) Py_TYPE(object)->tp_clear(object);
    }
    """
    unsigned int newest_unused
    void clear_attributes(object)

cdef double MAX_BYTES = 2.0 ** 62
cdef tuple DTYPES = ("float32", "bfloat16", "float16")  # by weight_type

cdef object operators = None      # entrenar.autograd.ops: operators are defined a floor above
cdef object walk_backward = None  # entrenar.autograd.tape.backward, likewise
cdef object grad_lock = RLock()   # held by backward, and by whoever sets the `grad` of a leaf


def _after_fork():
    global grad_lock
    grad_lock = RLock()  # another thread may have held it


os.register_at_fork(after_in_child=_after_fork)


cdef object gradients_lock():
    """The lock of all gradients: leaves are shared by threads, and their gradients are added to in place."""
    return grad_lock


cdef class Storage:
    def __dealloc__(self):
        if self.owner is None and self.memory != NULL:
            allocator_give(self.memory, self.size_class)


cdef Storage _allocate(size_t nbytes):
    cdef Storage storage = Storage.__new__(Storage)
    storage.memory = <char*> allocator_take(nbytes if nbytes else 1, &storage.size_class)
    if storage.memory == NULL:
        raise MemoryBudgetError(
            f"A tensor of {nbytes / 2**20:,.1f} MiB could not be allocated: the machine is out of memory; use a "
            "shorter sequence, a smaller batch or gradient checkpointing.")
    return storage


cdef Storage NOTHING = _allocate(0)  # of a tensor that was not initialised; its shape is (0,)


cdef class Node:
    cdef int backward(self, Tensor grad) except -1:
        raise GraphError(f"{type(self).__name__} has no backward.")

    cdef Tensor recompute(self):
        """The node's output again, from what it saved: the same bits."""
        raise GraphError(f"{type(self).__name__} does not recompute its output.")

    cdef void release(self):
        clear_attributes(self)
        self.released = True

    @property
    def saved_bytes(self):
        """Bytes of the tensors that this node saved for its backward."""
        return builtin_sum([t.nbytes for t in get_referents(self) if isinstance(t, Tensor)
                            and t is not self.gradient and t is not self.output])


cdef class AccumulateGrad(Node):
    cdef void release(self):
        pass


cdef AccumulateGrad leaf_node(Tensor t):
    """The node of a leaf, made when it is first needed."""
    cdef AccumulateGrad node
    if t.node is None:
        node = AccumulateGrad.__new__(AccumulateGrad)
        node.is_leaf = True
        node.needs_grad = t.needs_grad
        node.inputs = ()
        set_node_shape(node, t)
        t.node = node
    return <AccumulateGrad> t.node


cdef void set_node_shape(Node node, Tensor out) noexcept:
    node.ndim = out.ndim
    node.size = out.size
    memcpy(node.dims, out.dims, sizeof(node.dims))


builtin_sum = sum


cdef inline Py_ssize_t _item_bytes(int weight_type) noexcept:
    return 4 if weight_type == FLOAT32 else 2


cdef object _numpy_type(str dtype):
    if dtype != "bfloat16":
        return np.dtype(dtype)
    import ml_dtypes
    return np.dtype(ml_dtypes.bfloat16)


cdef inline int _set_shape(Tensor t, int ndim, const Py_ssize_t* dims) except -1:
    cdef int i
    cdef Py_ssize_t stride = _item_bytes(t.weight_type)
    cdef double bytes = stride  # a product that wrapped around would look small
    t.ndim = ndim
    t.size = 1
    for i in range(ndim - 1, -1, -1):
        t.dims[i] = dims[i]
        t.strides_bytes[i] = stride
        stride *= dims[i]
        t.size *= dims[i]
        bytes *= dims[i]
    if bytes > MAX_BYTES:
        raise ShapeError(f"A tensor of shape {t.shape} has more bytes than a machine can address.")
    return 0


cdef Tensor _allocate_tensor(int weight_type, int ndim, const Py_ssize_t* dims):
    cdef Tensor t = Tensor.__new__(Tensor)
    t.weight_type = weight_type
    _set_shape(t, ndim, dims)
    t.storage = _allocate(<size_t> t.size * _item_bytes(weight_type))
    t.data = <float*> t.storage.memory
    return t


cdef Tensor new_tensor(int ndim, const Py_ssize_t* dims):
    """Uninitialised float32."""
    return _allocate_tensor(FLOAT32, ndim, dims)


cdef Tensor new_like(Tensor t):
    return _allocate_tensor(FLOAT32, t.ndim, t.dims)


cdef Tensor new_gradient(Node node):
    """Uninitialised, in the shape of the node's output."""
    return _allocate_tensor(FLOAT32, node.ndim, node.dims)


cdef Tensor new_vector(Py_ssize_t n):
    return _allocate_tensor(FLOAT32, 1, &n)


cdef Tensor new_matrix(Py_ssize_t rows, Py_ssize_t cols):
    cdef Py_ssize_t[2] dims
    dims[0] = rows
    dims[1] = cols
    return _allocate_tensor(FLOAT32, 2, dims)


cdef Tensor new_scalar(float value):
    cdef Tensor t = _allocate_tensor(FLOAT32, 0, NULL)
    t.data[0] = value
    return t


cdef Tensor alias(Tensor t):
    """The same memory without the graph."""
    return alias_as(t, t.ndim, t.dims)


cdef Tensor alias_as(Tensor t, int ndim, const Py_ssize_t* dims):
    """The same memory under another shape of the same size, without the graph."""
    cdef Tensor a = Tensor.__new__(Tensor)
    a.weight_type = t.weight_type
    _set_shape(a, ndim, dims)
    a.storage = t.storage
    a.data = t.data
    return a


cdef Tensor as_tensor(object x):
    """A Tensor passes; a number or array-like is copied to float32."""
    if isinstance(x, Tensor):
        return <Tensor> x
    if isinstance(x, (int, float)):
        try:
            return new_scalar(x)
        except OverflowError:
            raise ConfigError(f"A tensor holds no integer of {x.bit_length()} bits.") from None
    return Tensor(x)


cdef Tensor check_dtype(Tensor t, str op, str name):
    """t, which must be float32; its value is not read."""
    if t.weight_type != FLOAT32:
        raise ConfigError(f"{op}: {name} is {t.dtype}, which is a storage type of frozen weights only; pass float32.")
    return t


cdef Tensor check_float32(Tensor t, str op, str name):
    """t, which must be float32 and whose value is about to be read."""
    check_dtype(t, op, name)
    note_read(t)
    return t


cdef void note_read(Tensor t) noexcept:
    """Tell checkpoint that the value of t is needed."""
    if t.last_linear != 0 and t.last_linear == newest_unused:
        set_unused_linear(0)


cdef unsigned int unused_linear() noexcept:
    """The number of this thread's newest linear whose value nothing has read; 0 where there is none."""
    return newest_unused


cdef void set_unused_linear(unsigned int number) noexcept:
    global newest_unused
    newest_unused = number


cdef bint same_shape(Tensor a, Tensor b) noexcept:
    return a.ndim == b.ndim and memcmp(a.dims, b.dims, a.ndim * sizeof(Py_ssize_t)) == 0


cdef str shape_str(Tensor t):
    return str(t.shape)


cdef Tensor _wrap_array(object array):
    """A Tensor over the memory of a C-contiguous array of one of DTYPES."""
    cdef Tensor t = Tensor.__new__(Tensor)
    cdef Py_ssize_t[MAX_DIMS] dims
    cdef int i
    if array.ndim > MAX_DIMS:
        raise ShapeError(f"A tensor has at most {MAX_DIMS} axes, not {array.ndim}.")
    for i in range(array.ndim):
        dims[i] = array.shape[i]
    t.weight_type = FLOAT32 if array.dtype == np.float32 else FLOAT16 if array.dtype == np.float16 else BFLOAT16
    _set_shape(t, array.ndim, dims)
    t.storage = Storage.__new__(Storage)
    t.storage.owner = (array, unresized(array))
    t.storage.memory = <char*> <size_t> array.ctypes.data
    t.storage.readonly = not array.flags.writeable
    t.data = <float*> t.storage.memory
    return t


cdef class Tensor:
    """An n-dimensional array with the graph of how it was computed.

    ``Tensor(data)`` copies numbers, nested lists or any array to float32; ``dtype="bfloat16"`` and "float16" round
    (storage of frozen weights, for `linear` and `embedding` only, without a gradient). ``Tensor.from_numpy(array)``
    shares memory. Raises ConfigError for an unknown dtype or a gradient of 16 bits, ShapeError for ragged data.
    """

    def __cinit__(self):
        self.ndim = 1
        self.strides_bytes[0] = 4
        self.storage = NOTHING
        self.data = <float*> NOTHING.memory

    def __init__(self, data, requires_grad=False, dtype="float32"):
        cdef Tensor t, new
        if self.storage is not NOTHING:
            raise GraphError("A Tensor is initialised once; others may hold its memory: make a new one.")
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ConfigError(f"A tensor's dtype is 'float32', 'bfloat16' or 'float16', not {dtype!r}.")
        target = _numpy_type(dtype)
        if isinstance(data, Tensor):
            data = data.numpy()
        t = _wrap_array(array_of_numbers(data, target))
        self.weight_type = t.weight_type
        new = _allocate_tensor(t.weight_type, t.ndim, t.dims)
        memcpy(new.data, t.data, <size_t> t.nbytes)
        _set_shape(self, t.ndim, t.dims)
        self.storage = new.storage
        self.data = new.data
        self.requires_grad = requires_grad

    @staticmethod
    def from_numpy(array, requires_grad=False):
        """A Tensor sharing the memory of a C-contiguous float32, float16 or ml_dtypes bfloat16 array, read-only or not.

        NumPy refuses to resize the array while the tensor lives; what it cannot refuse, `array.__setstate__`, must not
        be called. Raises ConfigError for another type or dtype, ShapeError for an array that is not contiguous or not
        aligned.
        """
        if not isinstance(array, np.ndarray) or array.dtype not in map(_numpy_type, DTYPES):
            found = getattr(array, "dtype", type(array).__name__)
            raise ConfigError(f"Tensor.from_numpy takes {', '.join(DTYPES)}, not {found}; use Tensor(array) to copy.")
        if not array.flags.c_contiguous or not array.flags.aligned:
            raise ShapeError(f"Tensor.from_numpy needs a C-contiguous, aligned array; this one of shape {array.shape} "
                             f"has strides {array.strides} at address {array.ctypes.data:#x}; use Tensor(array) to "
                             "copy.")
        cdef Tensor t = _wrap_array(array)
        t.requires_grad = requires_grad
        return t

    @staticmethod
    def from_dlpack(exporter):
        """A Tensor that shares the float32 memory of any CPU array with DLPack."""
        try:
            array = np.from_dlpack(exporter)
        except (AttributeError, TypeError, BufferError, ValueError, RuntimeError) as error:
            raise ConfigError(f"Tensor.from_dlpack needs a CPU array that speaks DLPack, not "
                              f"{type(exporter).__name__}: {error}.") from None
        return Tensor.from_numpy(array)

    @staticmethod
    def empty(*shape):
        """An uninitialised float32 tensor."""
        cdef Py_ssize_t[MAX_DIMS] dims
        cdef int i
        if len(shape) > MAX_DIMS or any(not isinstance(n, int) or not 0 <= n < 2**63 for n in shape):
            raise ShapeError(f"A tensor's shape is at most {MAX_DIMS} non-negative integers, not {shape}.")
        for i in range(len(shape)):
            dims[i] = shape[i]
        return new_tensor(len(shape), dims)

    @property
    def shape(self):
        """The lengths of the axes, a tuple."""
        return tuple([self.dims[i] for i in range(self.ndim)])

    @property
    def nbytes(self):
        """Bytes of the elements."""
        return self.size * _item_bytes(self.weight_type)

    @property
    def dtype(self):
        """'float32', 'bfloat16' or 'float16'."""
        return DTYPES[self.weight_type]

    @property
    def is_leaf(self):
        """Whether no recorded operation computed this tensor."""
        return self.node is None or self.node.is_leaf

    @property
    def requires_grad(self):
        """Whether backward computes a gradient for this tensor; may be set on leaves."""
        return self.needs_grad

    @requires_grad.setter
    def requires_grad(self, value):
        cdef bint wanted = checked_flag(value, "Tensor", "requires_grad")
        if not self.is_leaf:
            raise GraphError("requires_grad can be set on leaves only; this tensor was computed: use detach().")
        if wanted and self.weight_type != FLOAT32:
            raise ConfigError(f"A {self.dtype} tensor is storage of a frozen weight and has no gradient; use float32.")
        self.needs_grad = wanted
        if wanted or self.node is not None:
            leaf_node(self).needs_grad = self.needs_grad

    @property
    def grad(self):
        """The gradient of a leaf after backward, a Tensor of the same shape, or None."""
        return self.node.gradient if self.node is not None and self.node.is_leaf else None

    @grad.setter
    def grad(self, value):
        cdef Tensor t
        if not self.is_leaf:
            raise GraphError("grad can be set on leaves only; this tensor was computed.")
        if value is None:
            if self.node is not None:
                with grad_lock:
                    self.node.gradient = None
            return
        t = check_float32(as_tensor(value), "grad", "the gradient")
        if not same_shape(self, t):
            raise ShapeError(f"A gradient of shape {t.shape} does not fit a tensor of shape {self.shape}.")
        with grad_lock:
            leaf_node(self).gradient = t
            self.node.gradient_owned = False

    @property
    def grad_fn(self):
        """The node that computed this tensor, or None for a leaf."""
        return None if self.is_leaf else self.node

    def numpy(self):
        """The elements as a NumPy array that shares this tensor's memory (bfloat16 through ml_dtypes)."""
        array = np.asarray(memoryview(self))
        return array.view(_numpy_type("bfloat16")) if self.weight_type == BFLOAT16 else array

    def item(self):
        """The only element as a Python float; a ShapeError where there are more."""
        if self.size != 1:
            raise ShapeError(f"item() needs a tensor of one element; this one has shape {self.shape}.")
        return float(self.numpy().reshape(()))

    def tolist(self):
        """The elements as nested Python lists."""
        return self.numpy().astype(np.float64).tolist()

    def detach(self):
        """The same memory as a leaf without a gradient."""
        note_read(self)
        return alias(self)

    def backward(self, gradient=None):
        """Add the gradient of this tensor with respect to every leaf that requires one to the leaf's `grad`.

        `gradient` is the gradient of the final result with respect to this tensor; 1 where this is a scalar.
        """
        walk_backward(self, gradient)

    def zero_grad(self):
        """Set the gradient of a leaf to None."""
        if self.is_leaf:
            self.grad = None

    # ------------------------------------------------------------------ memory shared with others
    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.storage.readonly and flags & PyBUF_WRITABLE:
            raise BufferError("This tensor shares read-only memory; copy it with Tensor(tensor) to write.")
        note_read(self)
        view.buf = self.data
        view.obj = self
        view.len = self.nbytes
        view.readonly = self.storage.readonly
        view.itemsize = _item_bytes(self.weight_type)
        view.format = NULL
        if flags & PyBUF_FORMAT:
            view.format = b"H" if self.weight_type == BFLOAT16 else b"e" if self.weight_type == FLOAT16 else b"f"
        view.ndim = self.ndim
        view.shape = self.dims
        view.strides = self.strides_bytes
        view.suboffsets = NULL
        view.internal = NULL

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        return self.numpy().__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)

    def __dlpack_device__(self):
        return (1, 0)  # kDLCPU

    # ------------------------------------------------------------------ Python protocols
    def __len__(self):
        if self.ndim == 0:
            raise TypeError("a tensor without axes has no length")
        return self.dims[0]

    def __richcmp__(self, other, int op):
        return operators.compared(self, other, op)

    def __hash__(self):
        return <Py_hash_t> (<size_t> <void*> self >> 4)

    def __contains__(self, value):
        return bool(np.any(self == value))

    def __array_ufunc__(self, function, method, *inputs, **options):
        return operators.called_ufunc(function, method, inputs, options)

    def __array_function__(self, function, types, inputs, options):
        return operators.called_function(function, inputs, options)

    def __float__(self):
        return self.item()

    def __int__(self):
        return int(self.item())

    def __format__(self, spec):
        return format(self.item() if self.ndim == 0 else repr(self), spec)

    def __bool__(self):
        if self.size != 1:
            raise ShapeError(f"The truth of a tensor of shape {self.shape} is ambiguous; compare its numpy().")
        return bool(self.item())

    def __repr__(self):
        body = np.array2string(self.numpy(), precision=4, separator=", ", threshold=20, prefix="Tensor(")
        extra = ", requires_grad=True" if self.is_leaf and self.needs_grad else ""
        extra += f", grad_fn={type(self.node).__name__}" if not self.is_leaf else ""
        extra += f", dtype={self.dtype}" if self.weight_type != FLOAT32 else ""
        return f"Tensor({body}{extra})"

    def __reduce__(self):
        return Tensor, (self.numpy(), self.needs_grad and self.is_leaf, self.dtype)

    # ------------------------------------------------------------------ operators: the ops floor registers itself
    def __add__(self, other):
        return operators.add(self, other)

    def __radd__(self, other):
        return operators.add(other, self)

    def __sub__(self, other):
        return operators.sub(self, other)

    def __rsub__(self, other):
        return operators.sub(other, self)

    def __mul__(self, other):
        return operators.mul(self, other)

    def __rmul__(self, other):
        return operators.mul(other, self)

    def __truediv__(self, other):
        return operators.div(self, other)

    def __rtruediv__(self, other):
        return operators.div(other, self)

    def __matmul__(self, other):
        return operators.matmul(self, other)

    def __rmatmul__(self, other):
        return operators.matmul(other, self)

    def __neg__(self):
        return operators.neg(self)

    def __pow__(self, exponent, modulo):
        return operators.pow(self, exponent)

    def __getitem__(self, index):
        return operators.slice(self, index)

    def reshape(self, *shape):
        """See `entrenar.autograd.reshape`."""
        return operators.reshape(self, shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)

    def transpose(self, *axes):
        """See `entrenar.autograd.transpose`."""
        return operators.transpose(self, axes or None)

    @property
    def T(self):
        """The tensor with its axes reversed."""
        return operators.transpose(self)

    def sum(self, axis=None, keepdims=False):
        """See `entrenar.autograd.sum`."""
        return operators.sum(self, axis, keepdims)

    def mean(self, axis=None, keepdims=False):
        """See `entrenar.autograd.mean`."""
        return operators.mean(self, axis, keepdims)

    def max(self, axis=None, keepdims=False):
        """See `entrenar.autograd.max`."""
        return operators.max(self, axis, keepdims)


def register_operators(namespace, backward):
    """Set the functions of Tensor's operators and of its `backward` (called once by entrenar.autograd)."""
    global operators, walk_backward
    operators = namespace
    walk_backward = backward


def memory_stats():
    """Bytes of tensor memory: in use, the peak since the last reset, and cached for reuse."""
    return {"in_use": allocator_in_use(), "peak": allocator_peak(), "cached": allocator_cached()}


def reset_peak_memory():
    """Let memory_stats()['peak'] start again from what is in use now."""
    allocator_reset_peak()


def empty_cache():
    """Return the cached blocks to the operating system."""
    allocator_trim(0)
