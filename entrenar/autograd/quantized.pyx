"""QuantizedTensor: a frozen weight matrix that stays quantized in memory; kernels dequantize it as they read it.

NF4 and its double quantization follow Dettmers et al., "QLoRA" (arXiv 2305.14314), with the bits of bitsandbytes: 64
columns a block, the first code of a byte in the high nibble, 4.127 bits a weight (4.5 without double quantization).
Q4_0, Q4_1 and Q8_0 are ggml's block formats (32 columns, fp16 scale, Q4_1 also an fp16 minimum; 4.5, 5 and 8.5 bits a
weight). "int4" stands for Q4_1: of the two with 4 bits the one with the smaller error. "int16" is what the 16-bit
integer products read as it is: 64 columns share an fp32 scale, values in +-4095 (16.5 bits a weight, an eighth of
bfloat16's error).
"""
from libc.stdint cimport int16_t, uint8_t

import numpy as np

from entrenar._kernels.partition cimport ceil_div
from entrenar._kernels.quantize cimport (
    absmax_quantize, dequantize_rows, dequantize_run, ggml_check, int16_quantize, nf4_quantize, q4_quantize,
    q8_quantize,
)
from entrenar._kernels.simd.quantize cimport QUANTIZE_NOT_FINITE
from entrenar._kernels.simd.matrix_view cimport (
    GGML_BLOCK, INT16_BLOCK, INT16_LIMIT, NF4_BLOCK, NF4_SECOND_BLOCK, Q4_0_BYTES, Q4_1_BYTES, Q8_0_BYTES,
    WEIGHT_INT16, WEIGHT_NF4, WEIGHT_Q4_0, WEIGHT_Q4_1, WEIGHT_Q8_0, matrix_view,
)
from entrenar.autograd.tensor cimport Tensor
from entrenar.errors import ConfigError, QuantizationError, ShapeError

BLOCK_SIZE = {"nf4": NF4_BLOCK, "int4": GGML_BLOCK, "q4_0": GGML_BLOCK, "q4_1": GGML_BLOCK, "q8_0": GGML_BLOCK,
              "int16": INT16_BLOCK}
_SOURCES = {"nf4": WEIGHT_NF4, "q4_0": WEIGHT_Q4_0, "q4_1": WEIGHT_Q4_1, "q8_0": WEIGHT_Q8_0, "int16": WEIGHT_INT16}
_GGML_BYTES = {"q4_0": Q4_0_BYTES, "q4_1": Q4_1_BYTES, "q8_0": Q8_0_BYTES}  # of a block
_GGML_4BIT = ("q4_0", "q4_1")
FOUR_BIT = ("nf4", *_GGML_4BIT)
_SCALED = ("nf4", "int16")  # kinds whose scales are an array of their own
STREAM_BYTES = 8 << 20  # of float32 rows that a conversion works on at a time
NF4_VALUES = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], np.float32)
NF4_VALUES.flags.writeable = False


def _dynamic_map():
    """The 256 sorted values of an 8-bit absmax (Dettmers, arXiv 1511.04561): 7 decades, each finer than the last."""
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
    """The first element of an array that the caller keeps alive."""
    return <const void*> <size_t> array.ctypes.data


cdef str _format(object weight_type):
    """The block format behind a name; ConfigError for an unknown one."""
    if weight_type not in BLOCK_SIZE:
        raise ConfigError(f"The quantized weight type {weight_type!r} is unknown; choose one of "
                          f"{', '.join(BLOCK_SIZE)}.")
    return "q4_1" if weight_type == "int4" else weight_type


cdef Py_ssize_t _row_bytes(str weight_type, Py_ssize_t columns):
    if weight_type == "nf4":
        return columns // 2
    if weight_type == "int16":
        return 2 * columns
    return columns // GGML_BLOCK * <Py_ssize_t> _GGML_BYTES[weight_type]


cdef tuple _matrix_shape(object shape, str weight_type):
    """(rows, columns) as integers; QuantizationError where a row is no whole number of blocks."""
    if len(shape) != 2:
        raise QuantizationError(f"Only matrices can be {weight_type}; the shape must be (rows, columns), not "
                                f"{tuple(shape)}.")
    rows, columns = int(shape[0]), int(shape[1])
    if rows < 0 or columns < 0:
        raise QuantizationError(f"The shape ({rows}, {columns}) has a negative size; both must be 0 or more.")
    if columns % BLOCK_SIZE[weight_type]:
        raise QuantizationError(
            f"A matrix of shape ({rows}, {columns}) cannot be {weight_type}: its {columns} columns are no multiple of "
            f"the block size {BLOCK_SIZE[weight_type]}; keep it in float32 or bfloat16.")
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


cdef int _check_int16(object quantized_values) except -1:
    """The integer products would overflow beyond the limit, silently."""
    if quantized_values.size and not -INT16_LIMIT <= quantized_values.min() <= quantized_values.max() <= INT16_LIMIT:
        raise QuantizationError(f"The int16 values reach from {quantized_values.min()} to {quantized_values.max()}, "
                                f"expected {INT16_LIMIT} at most in magnitude.")
    return 0


cdef QuantizedTensor _assemble(str weight_type, Py_ssize_t rows, Py_ssize_t columns, object quantized_values,
                               object absmax=None, object quantized_absmax=None, object absmax_map=None,
                               object offset=0.0):
    """Check every buffer against the shape, keep it alive and point `view` at it."""
    cdef QuantizedTensor q = QuantizedTensor.__new__(QuantizedTensor)
    cdef Py_ssize_t stride = _row_bytes(weight_type, columns), blocks = rows * (columns // NF4_BLOCK)
    q.weight_type, q.rows, q.columns = weight_type, rows, columns
    q.quantized_values = _expect(quantized_values, "quantized_values", np.uint8, rows * stride).reshape(rows, stride)
    if weight_type == "int16":
        _check_int16(q.quantized_values.view(np.int16))
    q.view.type = _SOURCES[weight_type]
    q.view.data = _address(q.quantized_values)
    q.view.row_stride = stride
    q.view.columns = columns
    if weight_type not in _SCALED:
        if ggml_check(<const uint8_t*> q.view.data, rows, columns // GGML_BLOCK, _GGML_BYTES[weight_type],
                      weight_type == "q4_1"):
            raise QuantizationError(f"A {weight_type} block has a scale that is infinite or NaN, expected a finite "
                                    "one.")
        return q
    if quantized_absmax is not None:
        q.quantized_absmax = _expect(quantized_absmax, "quantized_absmax", np.uint8, blocks)
        q.absmax_map = _expect(absmax_map, "absmax_map", np.float32, 256)
        if q.absmax_map.tobytes() == DYNAMIC_MAP.tobytes():
            q.absmax_map = DYNAMIC_MAP  # one copy for all tensors
        q.view.quantized_absmax = <const uint8_t*> _address(q.quantized_absmax)
        q.view.absmax_map = <const float*> _address(q.absmax_map)
        q.view.absmax_offset = _expect(offset, "absmax_offset", np.float32, 1).reshape(-1)[0]
        blocks = ceil_div(blocks, NF4_SECOND_BLOCK)
    q.absmax = _expect(absmax, "absmax", np.float32, blocks)
    q.view.absmax = <const float*> _address(q.absmax)
    return q


cdef object _float_rows(object chunk, Py_ssize_t columns):
    """A chunk of rows in contiguous float32; QuantizationError where it is no such thing."""
    chunk = np.asarray(chunk)
    if chunk.ndim != 2 or chunk.shape[1] != columns:
        raise QuantizationError(f"The rows to quantize came as shape {chunk.shape}, expected (any, {columns}).")
    if chunk.dtype.kind in "cOSUMm":
        raise QuantizationError(f"The rows to quantize have dtype {chunk.dtype}, expected floating-point numbers.")
    with np.errstate(over="ignore"):  # what becomes infinite is refused with its position
        return np.ascontiguousarray(chunk, np.float32)


def _refuse(int status, str weight_type, object x, Py_ssize_t first_row):
    """Raise the error of a quantizer that returned `status` for the rows x."""
    if status & QUANTIZE_NOT_FINITE:
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise QuantizationError(
            f"The weight at row {first_row + row}, column {column} is {x[row, column]}; {weight_type} holds finite "
            "ones only.")
    row, column = np.unravel_index(np.argmax(np.abs(x)), x.shape)
    raise QuantizationError(
        f"The weight at row {first_row + row}, column {column} is {x[row, column]:g}, beyond the float16 scale of "
        f"{weight_type}; use {'int16' if weight_type == 'q8_0' else 'nf4'}, whose scale is float32.")


cdef object _quantize_chunk(str weight_type, object x, object quantized_values, object absmax, Py_ssize_t first_row):
    """Quantize contiguous float32 rows x into `quantized_values` and (NF4) `absmax`, which hold just these rows."""
    cdef uint8_t* to = <uint8_t*> _address(quantized_values)
    cdef const float* rows = <const float*> _address(x)
    cdef float* scales = NULL
    cdef Py_ssize_t n = x.shape[0], columns = x.shape[1]
    cdef bint minimum = weight_type == "q4_1"
    cdef int status
    if weight_type == "nf4":
        scales = <float*> _address(absmax)
        with nogil:
            status = nf4_quantize(to, scales, rows, n, columns)
    elif weight_type == "int16":
        scales = <float*> _address(absmax)
        with nogil:
            status = int16_quantize(<int16_t*> to, scales, rows, n, columns)
    elif weight_type == "q8_0":
        with nogil:
            status = q8_quantize(to, rows, n, columns)
    else:
        with nogil:
            status = q4_quantize(to, rows, n, columns, minimum)
    if status:
        _refuse(status, weight_type, x, first_row)


cdef tuple _double_quantize(object absmax):
    """(quantized_values, second-level absmax, offset) of contiguous float32 absmax: QLoRA's double quantization."""
    cdef Py_ssize_t count = absmax.size
    offset = np.float32(absmax.mean(dtype=np.float64)) if count else np.float32(0)
    quantized_values = np.empty(count, np.uint8)
    second = np.empty(ceil_div(count, NF4_SECOND_BLOCK), np.float32)
    absmax_quantize(<uint8_t*> _address(quantized_values), <float*> _address(second), <const float*> _address(absmax),
                    offset, <const float*> _address(DYNAMIC_MAP), count)
    return quantized_values, second, offset


cdef object _dequantize(const matrix_view* view, Py_ssize_t first, Py_ssize_t rows):
    out = np.empty((rows, view.columns), np.float32)
    cdef float* to = <float*> _address(out)
    with nogil:
        dequantize_rows(to, view, first, rows)
    return out


cdef class QuantizedTensor:
    """A frozen matrix of shape (rows, columns) = (out_features, in_features) as quantized values. It takes no gradient.

    `weight_type` is "nf4", "q4_0", "q4_1", "q8_0" or "int16"; `quantized_values` (uint8, one line a row), `absmax` (of
    "int16" the scales), `quantized_absmax` and `absmax_map` are the arrays that it holds (None where the type has
    none). Made by `quantize`, `quantize_streaming`, `from_gguf_blocks`, `from_bitsandbytes` or `from_arrays`.
    """

    def __init__(self):
        raise TypeError("Make a QuantizedTensor with quantize() or one of the from_...() functions.")

    @staticmethod
    def quantize(array, str weight_type, *, bint double_quantization=True):
        """Quantize a matrix (Tensor or array of any float dtype), a few rows at a time.

        `weight_type`: "nf4", "q4_0", "q4_1", "q8_0", "int16", or "int4" for q4_1. `double_quantization` stores NF4's
        absmax in 8 bits. Raises QuantizationError for a NaN or infinite weight, for columns that are no multiple of the
        block size (64 for nf4 and int16, 32 for the others), and for weights whose scale overflows the float16 of the
        latter.
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
        weight_type = _format(weight_type)
        n, columns = _matrix_shape(shape, weight_type)
        quantized_values = np.empty((n, _row_bytes(weight_type, columns)), np.uint8)
        absmax = np.empty((n, columns // NF4_BLOCK), np.float32) if weight_type in _SCALED else None
        for chunk in _chunks(rows, n, columns) if callable(rows) else rows:
            x = _float_rows(chunk, columns)
            stop = start + len(x)
            if stop > n:
                raise QuantizationError(f"More rows came than the {n} of the shape ({n}, {columns}).")
            _quantize_chunk(weight_type, x, quantized_values[start:stop], 
                            None if absmax is None else absmax[start:stop], start)
            start = stop
        if start != n:
            raise QuantizationError(f"Only {start} rows came, expected the {n} of the shape ({n}, {columns}).")
        if weight_type != "nf4" or not double_quantization:
            return _assemble(weight_type, n, columns, quantized_values, absmax)
        quantized_absmax, second, offset = _double_quantize(absmax)
        return _assemble(weight_type, n, columns, quantized_values, second, quantized_absmax, DYNAMIC_MAP, offset)

    @staticmethod
    def from_gguf_blocks(raw, str weight_type, shape, row_permutation=None):
        """A Q4_0, Q4_1 or Q8_0 tensor of a GGUF file as it is: `raw` holds its uint8 blocks, not copied if contiguous.

        Row i of the result is row `row_permutation[i]` of the file (whole rows of blocks move, which copies). Raises
        QuantizationError for another type, for blocks that do not fill the shape, and for infinite or NaN scales.
        """
        weight_type = _format(weight_type)
        if weight_type in _SCALED:
            raise QuantizationError(f"GGUF files hold q4_0, q4_1 or q8_0 blocks; {weight_type!r} has no GGUF form.")
        rows, columns = _matrix_shape(shape, weight_type)
        stride = _row_bytes(weight_type, columns)
        raw = _expect(raw, "The GGUF tensor", np.uint8, rows * stride).reshape(rows, stride)
        if row_permutation is not None:
            order = np.asarray(row_permutation)
            if order.shape != (rows,) or not np.array_equal(np.sort(order), np.arange(rows)):
                raise QuantizationError(f"row_permutation must hold each of the {rows} rows once.")
            raw = raw[order]
        return _assemble(weight_type, rows, columns, raw)

    @staticmethod
    def from_bitsandbytes(quantized_values, absmax, shape, *, int blocksize=64, quant_map=None, nested_absmax=None,
                          nested_quant_map=None, nested_offset=0.0, int nested_blocksize=256):
        """An NF4 tensor with the values that bitsandbytes stored; the arguments have the names of its state dicts.

        `quantized_values` is the packed uint8 weight, `absmax` float32, or uint8 where the nested_* parts are given.
        Raises QuantizationError for FP4, for other block sizes than 64 and 256, and for columns that are no multiple of
        64: there blocks cross rows; `dequantize_bitsandbytes` takes such tensors.
        """
        rows, columns = _matrix_shape(shape, "nf4")
        _check_nf4_map(quant_map)
        if blocksize != NF4_BLOCK or (nested_absmax is not None and nested_blocksize != NF4_SECOND_BLOCK):
            raise QuantizationError(
                f"The bitsandbytes tensor has blocks of {blocksize} (nested {nested_blocksize}), expected {NF4_BLOCK} "
                f"(nested {NF4_SECOND_BLOCK}); dequantize_bitsandbytes reads other sizes.")
        if nested_absmax is None:
            return _assemble("nf4", rows, columns, quantized_values, absmax)
        return _assemble("nf4", rows, columns, quantized_values, nested_absmax, absmax, nested_quant_map, nested_offset)

    @staticmethod
    def from_arrays(arrays, str weight_type):
        """The tensor that `to_arrays` took apart; QuantizationError where an array is missing or has the wrong size."""
        weight_type = _format(weight_type)
        names = ["quantized_values", "absmax"] if weight_type in _SCALED else ["quantized_values"]
        if weight_type == "nf4" and "quantized_absmax" in arrays:
            names += ["quantized_absmax", "absmax_map", "absmax_offset"]
        missing, unknown = [n for n in names if n not in arrays], [n for n in arrays if n not in names]
        if missing or unknown:
            raise QuantizationError(f"The arrays of a {weight_type} tensor must be {names}, not {sorted(arrays)}.")
        quantized_values = np.asarray(arrays["quantized_values"])
        per_block = _row_bytes(weight_type, BLOCK_SIZE[weight_type])
        if quantized_values.ndim != 2 or quantized_values.shape[1] % per_block:
            raise QuantizationError(f"quantized_values of {weight_type} has shape {quantized_values.shape}, expected "
                                    f"(rows, {per_block} n).")
        columns = quantized_values.shape[1] // per_block * BLOCK_SIZE[weight_type]
        return _assemble(weight_type, quantized_values.shape[0], columns, quantized_values, arrays.get("absmax"),
                         arrays.get("quantized_absmax"), arrays.get("absmax_map"),
                         arrays.get("absmax_offset", 0.0))

    def to_arrays(self):
        """The arrays to save, by name: `quantized_values`, `absmax` of NF4 and int16, NF4's second level; no copies."""
        arrays = {"quantized_values": self.quantized_values}
        if self.weight_type in _SCALED:
            arrays["absmax"] = self.absmax
        if self.quantized_absmax is not None:
            arrays |= {"quantized_absmax": self.quantized_absmax, "absmax_map": self.absmax_map,
                       "absmax_offset": np.array([self.absmax_offset], np.float32)}
        return arrays

    def __reduce__(self):
        return QuantizedTensor.from_arrays, (self.to_arrays(), self.weight_type)

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
        """The weight_type: "nf4", "q4_0", "q4_1", "q8_0" or "int16"."""
        return self.weight_type

    @property
    def requires_grad(self):
        """Always False: quantized values are frozen."""
        return False

    @property
    def absmax_offset(self):
        """What double quantization subtracted from every absmax; 0 without it."""
        return self.view.absmax_offset

    @property
    def double_quantized(self):
        """Whether NF4's absmax is stored in 8 bits."""
        return self.quantized_absmax is not None

    @property
    def nbytes(self):
        """Bytes of everything it holds (a mapped file's pages included); the one map that all tensors share is not."""
        held = [self.quantized_values, self.absmax, self.quantized_absmax, self.absmax_map]
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
    step = max(1, STREAM_BYTES // max(1, 4 * columns))
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


cdef tuple _plain_input(object x, str weight_type):
    x = np.asarray(x.numpy() if isinstance(x, Tensor) else x)
    if x.ndim < 1:
        raise QuantizationError(f"Only arrays with a last axis can be {weight_type}; a scalar was given.")
    lead, columns = x.shape[:-1], x.shape[-1]
    rows = 1
    for extent in lead:
        rows *= extent
    rows, columns = _matrix_shape((rows, columns), weight_type)
    return _float_rows(x.reshape(rows, columns), columns), lead


def quantize_nf4(x):
    """(quantized_values, absmax) of an array (..., k), k a multiple of 64: uint8 (..., k/2) and float32 (..., k/64).

    Bit-equal with bitsandbytes. Raises QuantizationError for NaN, infinity or another k.
    """
    x, lead = _plain_input(x, "nf4")
    quantized_values = np.empty((len(x), x.shape[1] // 2), np.uint8)
    absmax = np.empty((len(x), x.shape[1] // NF4_BLOCK), np.float32)
    _quantize_chunk("nf4", x, quantized_values, absmax, 0)
    return quantized_values.reshape(*lead, quantized_values.shape[1]), absmax.reshape(*lead, absmax.shape[1])


def dequantize_nf4(quantized_values, absmax):
    """Float32 (..., k) from what `quantize_nf4` returned; QuantizationError where the two do not fit together."""
    values = np.asarray(quantized_values)
    if values.ndim < 1 or values.shape[-1] % (NF4_BLOCK // 2):
        raise QuantizationError(f"quantized_values has shape {values.shape}, expected a last axis of "
                                f"{NF4_BLOCK // 2} n bytes.")
    flat = values.reshape(-1, values.shape[-1]) if values.size else values.reshape(0, values.shape[-1])
    q = _assemble("nf4", flat.shape[0], 2 * flat.shape[1], flat, absmax)
    return q.dequantize().reshape(*values.shape[:-1], 2 * values.shape[-1])


def quantize_int4(x, str weight_type="int4"):
    """uint8 blocks (..., k/32 * 20) of an array (..., k) as Q4_1, or (..., k/32 * 18) with weight_type="q4_0"."""
    weight_type = _format(weight_type)
    if weight_type not in _GGML_4BIT:
        raise ConfigError("quantize_int4 makes q4_0 or q4_1 (int4) blocks; quantize_nf4 makes nf4, "
                          "QuantizedTensor.quantize all.")
    x, lead = _plain_input(x, weight_type)
    blocks = np.empty((len(x), _row_bytes(weight_type, x.shape[1])), np.uint8)
    _quantize_chunk(weight_type, x, blocks, None, 0)
    return blocks.reshape(*lead, blocks.shape[1])


def dequantize_int4(blocks, str weight_type="int4"):
    """Float32 (..., k) from what `quantize_int4` returned for the same weight_type."""
    weight_type = _format(weight_type)
    if weight_type not in _GGML_4BIT:
        raise ConfigError("dequantize_int4 reads q4_0 or q4_1 (int4) blocks; dequantize_nf4 reads nf4, "
                          "QuantizedTensor.from_arrays all.")
    blocks = np.asarray(blocks)
    size = _row_bytes(weight_type, GGML_BLOCK)
    if blocks.ndim < 1 or blocks.shape[-1] % size:
        raise QuantizationError(f"blocks has shape {blocks.shape}, expected a last axis of a multiple of {size} bytes.")
    flat = blocks.reshape(-1, blocks.shape[-1]) if blocks.size else blocks.reshape(0, blocks.shape[-1])
    columns = blocks.shape[-1] // size * GGML_BLOCK
    return _assemble(weight_type, flat.shape[0], columns, flat).dequantize().reshape(*blocks.shape[:-1], columns)


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
