"""QuantizedTensor: a frozen weight matrix that stays quantized in memory; kernels dequantize it as they read it.

The weight types and what each costs are the rows of `weight_types.WEIGHT_TYPES`. NF4 and its double quantization follow
Dettmers et al., "QLoRA" (arXiv 2305.14314), with the bits of bitsandbytes; types that GGUF files have are ggml's,
bit for bit; "int4" stands for one of them; "int16" is what the 16-bit integer products read as it is.
"""
from libc.stdint cimport uint8_t

import numpy as np

from entrenar._kernels.partition cimport ceil_div
from entrenar._kernels.quantize cimport check_rows, dequantize_rows, dequantize_run, quantize_rows, quantize_scales
from entrenar._kernels.simd.matrix_view cimport matrix_view
from entrenar._kernels.simd.weights.types cimport INT16_LIMIT, QUANTIZE_NOT_FINITE, QUANTIZE_OUT_OF_RANGE
from entrenar.autograd.arguments cimport unresized
from entrenar.autograd.tensor cimport Tensor
from entrenar.autograd.weight_types import float32_scaled, quantized_type
from entrenar.errors import ConfigError, QuantizationError, ShapeError

STREAM_BYTES = 8 << 20  # of float32 rows that a conversion works on at a time
_NF4 = quantized_type("nf4")


def _dynamic_map():
    """The 256 sorted values of an 8-bit scale (Dettmers, arXiv 1511.04561): 7 decades, each finer than the last."""
    values = [0.0, 1.0]
    for exponent in range(7):
        edges = _linspace(2**exponent + 1)
        magnitudes = np.float32(10.0 ** (exponent - 6)) * ((edges[:-1] + edges[1:]) / np.float32(2))
        values += [*magnitudes.tolist(), *(-magnitudes).tolist()]
    table = np.sort(np.array(values, np.float32))
    table.flags.writeable = False
    return table


def _linspace(int count):
    """0.1 to 1 in float32, each half counted from its own end and rounded once, as PyTorch does on a CPU with FMA."""
    start, step = np.float64(np.float32(0.1)), np.float64((np.float32(1) - np.float32(0.1)) / np.float32(count - 1))
    i = np.arange(count)
    return np.where(i < count // 2, start + step * i, 1.0 - step * (count - 1 - i)).astype(np.float32)


DYNAMIC_MAP = _dynamic_map()


cdef const void* _address(object array):
    """The address of an array's first element; the caller holds the array."""
    return <const void*> <size_t> array.ctypes.data


cdef tuple _matrix_shape(object shape, object t):
    """(rows, columns) as integers; QuantizationError where a row is no whole number of blocks."""
    if len(shape) != 2:
        raise QuantizationError(f"Only matrices can be {t.name}; the shape must be (rows, columns), not "
                                f"{tuple(shape)}.")
    rows, columns = int(shape[0]), int(shape[1])
    if rows < 0 or columns < 0:
        raise QuantizationError(f"The shape ({rows}, {columns}) has a negative size; both must be 0 or more.")
    if columns % t.block_size:
        raise QuantizationError(
            f"A matrix of shape ({rows}, {columns}) cannot be {t.name}: its {columns} columns are no multiple of the "
            f"block size {t.block_size}; keep it in float32 or bfloat16.")
    return rows, columns


cdef object _expect(object array, str name, object dtype, Py_ssize_t size):
    """`array` as contiguous memory of `dtype`, without a copy where it is that already; QuantizationError by size."""
    array = np.asarray(array)
    if dtype is np.uint8 and array.dtype != np.uint8:
        raise QuantizationError(f"{name} has dtype {array.dtype}, expected uint8.")
    if array.size != size:
        raise QuantizationError(f"{name} has {array.size} elements, expected {size} for this shape.")
    array = np.ascontiguousarray(array, dtype)
    if dtype is np.float32 and not np.isfinite(array).all():
        raise QuantizationError(f"{name} holds a value that is infinite or NaN, expected finite numbers.")
    return array


cdef int _check_values(QuantizedTensor q) except -1:
    """QuantizationError where kernels cannot read the quantized values."""
    cdef int status
    with nogil:
        status = check_rows(q.view.type, <const uint8_t*> q.view.data, q.rows, q.columns)
    if status & QUANTIZE_OUT_OF_RANGE:
        values = q.stored_values.view(np.int16)
        raise QuantizationError(f"The {q.weight_type} values reach from {values.min()} to {values.max()}, expected "
                                f"{INT16_LIMIT} at most in magnitude.")
    if status & QUANTIZE_NOT_FINITE:
        raise QuantizationError(f"A {q.weight_type} block has a scale that is infinite or NaN, expected a finite one.")
    return 0


cdef QuantizedTensor _assemble(object t, Py_ssize_t rows, Py_ssize_t columns, object quantized_values,
                               object scales=None, object quantized_scales=None, object scale_map=None,
                               object offset=0.0):
    """Check every buffer against the shape, hold it and point `view` at it."""
    cdef QuantizedTensor q = QuantizedTensor.__new__(QuantizedTensor)
    cdef Py_ssize_t stride = t.row_bytes(columns), blocks = rows * (columns // t.block_size)
    q.weight_type, q.rows, q.columns = t.name, rows, columns
    q.stored_values = _expect(quantized_values, "quantized_values", np.uint8, rows * stride).reshape(rows, stride)
    q.references = unresized(q.stored_values)
    q.view.type = t.index
    q.view.data = _address(q.stored_values)
    q.view.row_stride = stride
    q.view.columns = columns
    _check_values(q)
    if not t.has_scales:
        return q
    if quantized_scales is not None:
        q.quantized_scales = _expect(quantized_scales, "quantized_scales", np.uint8, blocks)
        q.scale_map = _expect(scale_map, "scale_map", np.float32, 256)
        if q.scale_map.tobytes() == DYNAMIC_MAP.tobytes():
            q.scale_map = DYNAMIC_MAP  # one copy for all tensors
        q.view.quantized_scales = <const uint8_t*> _address(q.quantized_scales)
        q.view.scale_map = <const float*> _address(q.scale_map)
        q.view.scale_offset = _expect(offset, "scale_offset", np.float32, 1).reshape(-1)[0]
        blocks = ceil_div(blocks, t.scale_block)
    q.scales = _expect(scales, "scales", np.float32, blocks)
    q.view.scales = <const float*> _address(q.scales)
    q.references += unresized(q.scales) + unresized(q.quantized_scales) + unresized(q.scale_map)
    return q


def _nf4_values():
    """The 16 values of NF4 in order: a block whose quantized values are 0 to 15, with a scale of 1."""
    pairs = np.arange(0, 16, 2, dtype=np.uint8) * 17 + 1  # 0x01, 0x23, ..., 0xef
    values = _assemble(_NF4, 1, 64, np.tile(pairs, 4), np.ones(1, np.float32)).dequantize()[0, :16].copy()
    values.flags.writeable = False
    return values


NF4_VALUES = _nf4_values()


cdef object _float_rows(object chunk, Py_ssize_t columns):
    """A chunk of rows in contiguous float32; QuantizationError where it is no such thing."""
    chunk = np.asarray(chunk)
    if chunk.ndim != 2 or chunk.shape[1] != columns:
        raise QuantizationError(f"The rows to quantize came as shape {chunk.shape}, expected (any, {columns}).")
    if chunk.dtype.kind in "cOSUMm":
        raise QuantizationError(f"The rows to quantize have dtype {chunk.dtype}, expected floating-point numbers.")
    with np.errstate(over="ignore"):  # what becomes infinite is refused with its position
        return np.ascontiguousarray(chunk, np.float32)


def _refuse(int status, t, x, Py_ssize_t first_row):
    """Raise the error of a quantizer that returned `status` for the rows x."""
    if status & QUANTIZE_NOT_FINITE:
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise QuantizationError(
            f"The weight at row {first_row + row}, column {column} is {x[row, column]}; {t.name} holds finite ones "
            "only.")
    row, column = np.unravel_index(np.argmax(np.abs(x)), x.shape)
    raise QuantizationError(
        f"The weight at row {first_row + row}, column {column} is {x[row, column]:g}, beyond the float16 scale of "
        f"{t.name}; use {float32_scaled(t).name}, whose scale is float32.")


cdef object _quantize_chunk(object t, object x, object quantized_values, object scales, Py_ssize_t first_row):
    """Quantize contiguous float32 rows x into their `quantized_values` and `scales` (None where the type has none)."""
    cdef uint8_t* to = <uint8_t*> _address(quantized_values)
    cdef const float* rows = <const float*> _address(x)
    cdef float* scales_to = NULL if scales is None else <float*> _address(scales)
    cdef Py_ssize_t n = x.shape[0], columns = x.shape[1]
    cdef int status, index = t.index
    if columns == 0:
        return  # however many rows
    with nogil:
        status = quantize_rows(index, to, scales_to, rows, n, columns)
    if status:
        _refuse(status, t, x, first_row)


cdef tuple _double_quantize(object scales, Py_ssize_t group):
    """(quantized scales, second-level scales, offset) of contiguous float32 scales: QLoRA's double quantization."""
    cdef Py_ssize_t count = scales.size
    offset = np.float32(scales.mean(dtype=np.float64)) if count else np.float32(0)
    quantized = np.empty(count, np.uint8)
    second = np.empty(ceil_div(count, group), np.float32)
    quantize_scales(<uint8_t*> _address(quantized), <float*> _address(second), <const float*> _address(scales), offset,
                    <const float*> _address(DYNAMIC_MAP), count, group)
    return quantized, second, offset


cdef object _dequantize(const matrix_view* view, Py_ssize_t first, Py_ssize_t rows):
    out = np.empty((rows, view.columns), np.float32)
    cdef float* to = <float*> _address(out)
    if view.columns == 0:
        return out
    with nogil:
        dequantize_rows(to, view, first, rows)
    return out


cdef class QuantizedTensor:
    """A frozen matrix of shape (rows, columns) = (out_features, in_features) as quantized values. It takes no gradient.

    `weight_type` names a row of `weight_types`; `quantized_values` (uint8, one line a row), `scales`,
    `quantized_scales` and `scale_map` are the arrays that it holds (None where the type has none of its own). Made by
    `quantize`, `quantize_streaming`, `from_gguf_blocks`, `from_bitsandbytes` or `from_arrays`.
    """

    def __init__(self):
        raise TypeError("Make a QuantizedTensor with quantize() or one of the from_...() functions.")

    @staticmethod
    def quantize(array, str weight_type, *, bint double_quantization=True):
        """Quantize a matrix (Tensor or array of any float dtype), a few rows at a time.

        `weight_type`: any that is quantized, or "int4". `double_quantization` stores NF4's scales in 8 bits. Raises
        QuantizationError for a NaN or infinite weight, for columns that are no multiple of the block size, and for
        weights whose scale overflows the float16 of ggml's types; ConfigError for another weight type.
        """
        array = array.numpy() if isinstance(array, Tensor) else np.asarray(array)
        return QuantizedTensor.quantize_streaming(
            lambda start, stop: array[start:stop], array.shape, weight_type, double_quantization=double_quantization)

    @staticmethod
    def quantize_streaming(rows, shape, str weight_type, *, bint double_quantization=True):
        """Quantize a matrix of `shape` that never exists as a whole in full precision.

        `rows` is an iterable of consecutive arrays of rows, or a function (start, stop) -> rows. Otherwise as
        `quantize`; also raises QuantizationError where the rows do not add up to the shape.
        """
        cdef Py_ssize_t n, columns, start = 0, stop
        t = quantized_type(weight_type)
        n, columns = _matrix_shape(shape, t)
        quantized_values = np.empty((n, t.row_bytes(columns)), np.uint8)
        scales = np.empty((n, columns // t.block_size), np.float32) if t.has_scales else None
        for chunk in _chunks(rows, n, columns) if callable(rows) else rows:
            x = _float_rows(chunk, columns)
            stop = start + len(x)
            if stop > n:
                raise QuantizationError(f"More rows came than the {n} of the shape ({n}, {columns}).")
            _quantize_chunk(t, x, quantized_values[start:stop], None if scales is None else scales[start:stop], start)
            start = stop
        if start != n:
            raise QuantizationError(f"Only {start} rows came, expected the {n} of the shape ({n}, {columns}).")
        if not (t.scale_block and double_quantization):
            return _assemble(t, n, columns, quantized_values, scales)
        quantized_scales, second, offset = _double_quantize(scales, t.scale_block)
        return _assemble(t, n, columns, quantized_values, second, quantized_scales, DYNAMIC_MAP, offset)

    @staticmethod
    def from_gguf_blocks(raw, str weight_type, shape, Py_ssize_t head_dim=0):
        """A tensor of a GGUF file as it is: `raw` holds its uint8 blocks, not copied if contiguous.

        With a `head_dim`, each head of so many rows is stored for an interleaved rotary embedding, the rows of its two
        halves in turn; the tensor's are those of one half after those of the other, and nothing moves. Raises
        QuantizationError for a type that no GGUF file has, for blocks that do not fill the shape, for heads that do not
        divide its rows or are odd, and for infinite or NaN scales.
        """
        cdef QuantizedTensor q
        t = quantized_type(weight_type)
        if t.gguf_name is None:
            raise QuantizationError(f"GGUF files hold no blocks of {t.name}, which has no GGUF form.")
        rows, columns = _matrix_shape(shape, t)
        stride = t.row_bytes(columns)
        raw = _expect(raw, "The GGUF tensor", np.uint8, rows * stride).reshape(rows, stride)
        if head_dim < 0 or head_dim % 2 or (head_dim and rows % head_dim):
            raise QuantizationError(f"head_dim is {head_dim}, expected an even number that divides the {rows} rows.")
        q = _assemble(t, rows, columns, raw)
        q.view.half_head = head_dim // 2
        return q

    @staticmethod
    def from_bitsandbytes(quantized_values, absmax, shape, *, int blocksize=64, quant_map=None, nested_absmax=None,
                          nested_quant_map=None, nested_offset=0.0, int nested_blocksize=256):
        """An NF4 tensor with the values that bitsandbytes stored; the arguments have the names of its state dicts.

        `quantized_values` is the packed uint8 weight, `absmax` float32, or uint8 where the nested_* parts are given.
        Raises QuantizationError for FP4, for other block sizes than 64 and 256, and for columns that are no multiple of
        64: there blocks cross rows; `dequantize_bitsandbytes` takes such tensors.
        """
        rows, columns = _matrix_shape(shape, _NF4)
        _check_nf4_map(quant_map)
        if blocksize != _NF4.block_size or (nested_absmax is not None and nested_blocksize != _NF4.scale_block):
            raise QuantizationError(
                f"The bitsandbytes tensor has blocks of {blocksize} (nested {nested_blocksize}), expected "
                f"{_NF4.block_size} (nested {_NF4.scale_block}); dequantize_bitsandbytes reads other sizes.")
        if nested_absmax is None:
            return _assemble(_NF4, rows, columns, quantized_values, absmax)
        return _assemble(_NF4, rows, columns, quantized_values, nested_absmax, absmax, nested_quant_map, nested_offset)

    @staticmethod
    def from_arrays(arrays, str weight_type):
        """The tensor of `to_arrays`; QuantizationError where an array is missing or has the wrong size."""
        t = quantized_type(weight_type)
        names = ["quantized_values", "scales"] if t.has_scales else ["quantized_values"]
        if t.scale_block and "quantized_scales" in arrays:
            names += ["quantized_scales", "scale_map", "scale_offset"]
        missing, unknown = [n for n in names if n not in arrays], [n for n in arrays if n not in names]
        if missing or unknown:
            raise QuantizationError(f"The arrays of a {t.name} tensor must be {names}, not {sorted(arrays)}.")
        values = np.asarray(arrays["quantized_values"])
        if values.ndim != 2 or values.shape[1] % t.block_bytes:
            raise QuantizationError(f"quantized_values of {t.name} has shape {values.shape}, expected (rows, "
                                    f"{t.block_bytes} n).")
        return _assemble(t, values.shape[0], values.shape[1] // t.block_bytes * t.block_size, values,
                         arrays.get("scales"), arrays.get("quantized_scales"), arrays.get("scale_map"),
                         arrays.get("scale_offset", 0.0))

    def to_arrays(self):
        """The arrays to save, by name: `quantized_values`, `scales`, and the second level of scales."""
        arrays = {"quantized_values": self.quantized_values}
        if self.scales is not None:
            arrays["scales"] = self.scales
        if self.quantized_scales is not None:
            arrays |= {"quantized_scales": self.quantized_scales, "scale_map": self.scale_map,
                       "scale_offset": np.array([self.scale_offset], np.float32)}
        return arrays

    def __reduce__(self):
        return QuantizedTensor.from_arrays, (self.to_arrays(), self.weight_type)

    @property
    def quantized_values(self):
        """uint8, a line a row: a copy where they are stored in another order."""
        half = self.view.half_head
        if half == 0:
            return self.stored_values
        heads = self.stored_values.reshape(-1, half, 2, self.view.row_stride)
        return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(self.stored_values.shape)

    @property
    def shape(self):
        """(rows, columns)"""
        return self.rows, self.columns

    @property
    def ndim(self):
        return 2

    @property
    def size(self):
        """Number of weights."""
        return self.rows * self.columns

    @property
    def dtype(self):
        """The weight type, as `dtype` of a Tensor."""
        return self.weight_type

    @property
    def requires_grad(self):
        """Always False: quantized values are frozen."""
        return False

    @property
    def scale_offset(self):
        """What double quantization subtracted from every scale; 0 without it."""
        return self.view.scale_offset

    @property
    def double_quantized(self):
        """Whether NF4's scales are stored in 8 bits."""
        return self.quantized_scales is not None

    @property
    def nbytes(self):
        """Bytes of everything it holds (a mapped file's pages included); the one map that all tensors share is not."""
        held = [self.stored_values, self.scales, self.quantized_scales, self.scale_map]
        return sum([array.nbytes for array in held if array is not None and array is not DYNAMIC_MAP])

    def dequantize(self):
        """The weights as a new float32 array of shape (rows, columns)."""
        return _dequantize(&self.view, 0, self.rows)

    def dequantize_rows(self, Py_ssize_t start, Py_ssize_t stop):
        """Rows [start, stop) as a new float32 array; ShapeError where they are not within the matrix."""
        if not 0 <= start <= stop <= self.rows:
            raise ShapeError(f"Rows [{start}, {stop}) do not lie within the {self.rows} rows of the matrix.")
        return _dequantize(&self.view, start, stop - start)

    def dequantize_run(self, Py_ssize_t row, Py_ssize_t start, Py_ssize_t stop):
        """Columns [start, stop) of one row as a new float32 array, read as the matmuls read a tile of it."""
        if not (0 <= row < self.rows and 0 <= start <= stop <= self.columns):
            raise ShapeError(f"Row {row}, columns [{start}, {stop}) do not lie within a matrix of shape {self.shape}.")
        out = np.empty(stop - start, np.float32)
        dequantize_run(<float*> _address(out), &self.view, row, start, stop - start)
        return out

    def __repr__(self):
        bits = f", {8 * self.nbytes / self.size:.3f} bits a weight" if self.size else ""
        return f"QuantizedTensor(shape={self.shape}, weight_type={self.weight_type!r}{bits})"


def _chunks(rows, Py_ssize_t n, Py_ssize_t columns):
    """What `rows(start, stop)` gives, STREAM_BYTES of float32 at a time."""
    step = max(1, STREAM_BYTES // (4 * columns) if columns else n)
    for start in range(0, n, step):
        yield rows(start, min(n, start + step))


def _check_nf4_map(quant_map):
    if quant_map is not None and not np.array_equal(np.asarray(quant_map, np.float32).reshape(-1), NF4_VALUES):
        raise QuantizationError("The bitsandbytes tensor's quant_map is not NF4's (FP4?); only NF4 can be read.")


def dequantize_bitsandbytes(quantized_values, absmax, shape, *, Py_ssize_t blocksize=64, quant_map=None,
                            nested_absmax=None, nested_quant_map=None, nested_offset=0.0,
                            Py_ssize_t nested_blocksize=256):
    """Float32 array of any `shape` from a bitsandbytes NF4 tensor of any block size; blocks run over the flat tensor.

    Arguments as in `QuantizedTensor.from_bitsandbytes`. Raises QuantizationError for FP4 and for sizes that do not fit.
    """
    _check_nf4_map(quant_map)
    if blocksize < 2 or blocksize % 2 or nested_blocksize < 1:
        raise QuantizationError(f"bitsandbytes writes no blocks of {blocksize} (nested {nested_blocksize}).")
    size = 1
    for extent in shape:
        size *= int(extent)
    blocks = ceil_div(size, blocksize)
    quantized_values = _expect(quantized_values, "quantized_values", np.uint8, ceil_div(size, 2)).reshape(-1)
    if nested_absmax is not None:
        absmax = _expect(absmax, "absmax", np.uint8, blocks).reshape(-1)
        second = _expect(nested_absmax, "nested_absmax", np.float32, ceil_div(blocks, nested_blocksize)).reshape(-1)
        table = _expect(nested_quant_map, "nested_quant_map", np.float32, 256).reshape(-1)
        absmax = table[absmax] * np.repeat(second, nested_blocksize)[:blocks] + np.float32(nested_offset)
    absmax = _expect(absmax, "absmax", np.float32, blocks).reshape(-1)
    pairs = np.stack([np.repeat(NF4_VALUES, 16), np.tile(NF4_VALUES, 16)], axis=1)  # both values of every byte
    out = pairs[quantized_values]
    whole = quantized_values.size // (blocksize // 2) * (blocksize // 2)
    out[:whole].reshape(-1, blocksize)[...] *= absmax[: whole // (blocksize // 2), None]
    if whole < quantized_values.size:
        out[whole:] *= absmax[-1]
    return out.reshape(-1)[:size].reshape(shape)


cdef tuple _plain_input(object x, object t):
    x = np.asarray(x.numpy() if isinstance(x, Tensor) else x)
    if x.ndim < 1:
        raise QuantizationError(f"Only arrays with a last axis can be {t.name}; a scalar was given.")
    lead, columns = x.shape[:-1], x.shape[-1]
    rows = 1
    for extent in lead:
        rows *= extent
    rows, columns = _matrix_shape((rows, columns), t)
    return _float_rows(x.reshape(rows, columns), columns), lead


def quantize_nf4(x):
    """(quantized_values, absmax) of an array (..., k), k a multiple of 64: uint8 (..., k/2) and float32 (..., k/64).

    Bit-equal with bitsandbytes. Raises QuantizationError for NaN, infinity or another k.
    """
    x, lead = _plain_input(x, _NF4)
    quantized_values = np.empty((len(x), _NF4.row_bytes(x.shape[1])), np.uint8)
    absmax = np.empty((len(x), x.shape[1] // _NF4.block_size), np.float32)
    _quantize_chunk(_NF4, x, quantized_values, absmax, 0)
    return quantized_values.reshape(*lead, quantized_values.shape[1]), absmax.reshape(*lead, absmax.shape[1])


def dequantize_nf4(quantized_values, absmax):
    """Float32 (..., k) from what `quantize_nf4` returned; QuantizationError where the two do not fit together."""
    values = np.asarray(quantized_values)
    if values.ndim < 1 or values.shape[-1] % _NF4.block_bytes:
        raise QuantizationError(f"quantized_values has shape {values.shape}, expected a last axis of "
                                f"{_NF4.block_bytes} n bytes.")
    flat = values.reshape(-1, values.shape[-1]) if values.size else values.reshape(0, values.shape[-1])
    q = _assemble(_NF4, flat.shape[0], 2 * flat.shape[1], flat, absmax)
    return q.dequantize().reshape(*values.shape[:-1], 2 * values.shape[-1])


def _int4_type(str weight_type, str advice):
    """The row of a weight type of 4 bits that GGUF files have; ConfigError for another."""
    t = quantized_type(weight_type)
    if t.bits != 4 or t.gguf_name is None:
        raise ConfigError(f"{weight_type!r} has no blocks of 4 bits in GGUF files, as q4_0 and q4_1 (int4) have; "
                          f"{advice}.")
    return t


def quantize_int4(x, str weight_type="int4"):
    """uint8 blocks (..., k/32 * 20) of an array (..., k) as Q4_1, or (..., k/32 * 18) as Q4_0 where asked for."""
    t = _int4_type(weight_type, "quantize_nf4 makes nf4, QuantizedTensor.quantize all")
    x, lead = _plain_input(x, t)
    blocks = np.empty((len(x), t.row_bytes(x.shape[1])), np.uint8)
    _quantize_chunk(t, x, blocks, None, 0)
    return blocks.reshape(*lead, blocks.shape[1])


def dequantize_int4(blocks, str weight_type="int4"):
    """Float32 (..., k) from what `quantize_int4` returned for the same weight type."""
    t = _int4_type(weight_type, "dequantize_nf4 reads nf4, QuantizedTensor.from_arrays all")
    blocks = np.asarray(blocks)
    if blocks.ndim < 1 or blocks.shape[-1] % t.block_bytes:
        raise QuantizationError(f"blocks has shape {blocks.shape}, expected a last axis of a multiple of "
                                f"{t.block_bytes} bytes.")
    flat = blocks.reshape(-1, blocks.shape[-1]) if blocks.size else blocks.reshape(0, blocks.shape[-1])
    columns = blocks.shape[-1] // t.block_bytes * t.block_size
    return _assemble(t, flat.shape[0], columns, flat).dequantize().reshape(*blocks.shape[:-1], columns)


def pack_nibbles(values):
    """Bytes (..., k/2) from values (..., k), the first of a pair in the high nibble; QuantizationError above 15."""
    values = np.asarray(values)
    if values.ndim < 1 or values.shape[-1] % 2:
        raise QuantizationError(f"An even number of values was expected on the last axis of shape {values.shape}.")
    if values.dtype.kind not in "iu" or (values.size and not 0 <= values.min() <= values.max() <= 15):
        raise QuantizationError("4-bit values are integers from 0 to 15.")
    values = values.astype(np.uint8)
    return values[..., ::2] << 4 | values[..., 1::2]


def unpack_nibbles(packed):
    """4-bit values (..., 2 n) from bytes (..., n), the high nibble first."""
    packed = np.asarray(packed)
    if packed.dtype != np.uint8 or packed.ndim < 1:
        raise QuantizationError(f"Packed values are uint8 with a last axis, not {packed.dtype} of shape "
                                f"{packed.shape}.")
    return np.stack([packed >> 4, packed & 15], axis=-1).reshape(*packed.shape[:-1], 2 * packed.shape[-1])
