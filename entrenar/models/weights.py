"""Checkpoints -> weights, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from entrenar.autograd import Tensor
from entrenar.autograd.quantized import QuantizedTensor
from entrenar.autograd.weight_types import weight_type
from entrenar.errors import FormatError, QuantizationError
from entrenar.io.bitsandbytes import NF4Tensor
from entrenar.io.lazy import LazyTensor
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.gguf_model import half_split_rows
from entrenar.models.requantized import MEASURED_ROWS, Requantized, dequantized_sentence
from entrenar.models.storage import Storage, StoragePolicy, WeightStorage
from entrenar.nn.module import Weight

CHECKED_BYTES = 1 << 20  # of stored values of 16 bits, at a time
ROW_CHUNK_BYTES = 32 << 20  # what a conversion holds in float32 beside the tensor it fills


class WeightLoader:
    """Makes a model's weights from a checkpoint that was checked, each in the weight type that `storage` has for it.

    Stored values of 16 bits are mapped: the file must not be written to meanwhile. Raises FormatError for weights that
    are not finite.
    """

    def __init__(self, checkpoint: Checkpoint, storage: Storage) -> None:
        self.checkpoint, self.storage = checkpoint, storage
        # by stored type and new one; of what is dequantized the names
        self.requantized: dict[tuple[str, str], Requantized] = {}
        self.dequantized: dict[tuple[str, str], list[str]] = {}

    def costs(self) -> list[str]:
        """What becomes of quantized values that are not kept and what it costs, a sentence for each pair of types."""
        costs = [cost.sentence(*types) for types, cost in self.requantized.items()]
        return costs + [dequantized_sentence(names, *types) for types, names in self.dequantized.items()]

    def __call__(self, name: str, shape: tuple[int, ...]) -> Weight:
        lazy, weight = self.checkpoint.tensors[name], self.storage.weights[name]
        head_dim = self.checkpoint.config.head_size if self.checkpoint.interleaved(name) else None
        if weight.as_stored:
            return self._stored(lazy, weight.weight_type, shape, head_dim)
        if weight_type(weight.weight_type).is_quantized:
            return self._quantized(lazy, weight, head_dim)
        if weight.dequantized:
            self.dequantized.setdefault((lazy.type, weight.weight_type), []).append(lazy.name)
        plain = self._plain(lazy, shape, head_dim, weight.weight_type)
        if self.checkpoint.has_offset(name):
            plain.numpy()[...] -= 1
        return plain

    def original(self, name: str) -> np.ndarray | None:
        """The values (out, in), float32, of a matrix that was quantized from them; None for one that was not."""
        lazy, weight = self.checkpoint.tensors[name], self.storage.weights[name]
        if weight.as_stored or not weight_type(weight.weight_type).is_quantized:
            return None
        head_dim = self.checkpoint.config.head_size if self.checkpoint.interleaved(name) else None
        return np.concatenate(list(_rows(lazy, weight.shape, head_dim)))

    def _stored(self, lazy: LazyTensor, name: str, shape: tuple[int, ...], head_dim: int | None) -> Weight:
        """The tensor in the elements or quantized values that the file has for it."""
        if isinstance(lazy, NF4Tensor):
            return self._nf4(lazy)
        if not weight_type(name).is_quantized:
            raw = lazy.read() if head_dim else lazy.raw()  # what is copied need not stay mapped too
            self._check_16_bits(lazy, raw)
            return _of_16_bits(raw[half_split_rows(shape[0], head_dim)] if head_dim else raw, name, shape)
        try:
            return QuantizedTensor.from_gguf_blocks(lazy.raw(), name, shape, head_dim or 0)
        except QuantizationError as error:
            raise FormatError(f"{self._named(lazy)} cannot be used: {error}") from error

    def _nf4(self, lazy: NF4Tensor) -> QuantizedTensor:
        try:
            return lazy.quantized()
        except QuantizationError as error:
            raise FormatError(f"{self._named(lazy)} cannot be used: {error}") from error

    def _quantized(self, lazy: LazyTensor, weight: WeightStorage, head_dim: int | None) -> QuantizedTensor:
        """The tensor quantized; where that replaces other quantized values, what it costs is measured."""
        to, shape = weight.weight_type, weight.shape
        try:
            quantized = QuantizedTensor.quantize_streaming(
                _rows(lazy, shape, head_dim), shape, to, double_quantization=self.storage.policy.double_quantization
            )
        except QuantizationError as error:
            raise FormatError(f"{self._named(lazy)} cannot become {to}: {error}") from error
        if weight.dequantized:
            self.dequantized.setdefault((lazy.type, to), []).append(lazy.name)
        if weight.requantized:
            first = next(_rows(lazy, (head_dim or min(MEASURED_ROWS, shape[0]), shape[1]), head_dim))
            self.requantized.setdefault((lazy.type, to), Requantized()).add(lazy.name, first, quantized)
        return quantized

    def _named(self, lazy: LazyTensor) -> str:
        return f"{self.checkpoint.path}: the tensor {lazy.name} of type {lazy.type}"

    def _plain(self, lazy: LazyTensor, shape: tuple[int, ...], head_dim: int | None, dtype: str) -> Tensor:
        target = np.empty(shape, _numpy_type(dtype))
        start = 0
        for rows in _rows(lazy, shape, head_dim):
            self._check_finite(lazy, rows, start)
            with np.errstate(over="ignore"):
                target[start : start + len(rows)] = rows
            self._check_fits(lazy, rows, target[start : start + len(rows)], start)
            start += len(rows)
        return Tensor.from_numpy(target, requires_grad=dtype == "float32")

    def _check_fits(self, lazy: LazyTensor, rows: np.ndarray, rounded: np.ndarray, start: int) -> None:
        """FormatError where a finite weight is beyond the range of float16."""
        if rounded.dtype == np.float16 and not np.isfinite(rounded).all():
            first = np.argwhere(~np.isfinite(rounded))[0]
            place = [start + int(first[0]), *map(int, first[1:])]
            raise FormatError(
                f"{self._named(lazy)} is {rows[tuple(first)]:g} at {place}, beyond float16, expected magnitudes up to "
                "65504; use dtype bfloat16."
            )

    def _check_16_bits(self, lazy: LazyTensor, raw: np.ndarray) -> None:
        """As `_check_finite`, of stored bytes: an exponent of ones is no finite number."""
        exponent = 0x7C00 if lazy.type == "F16" else 0x7F80
        step = max(1, CHECKED_BYTES // max(raw.shape[1], 1))
        for start in range(0, len(raw), step):
            bits = raw[start : start + step].view("<u2")
            if ((bits & exponent) == exponent).any():
                self._check_finite(lazy, lazy.load_rows(start, start + len(bits)), start)

    def _check_finite(self, lazy: LazyTensor, rows: np.ndarray, start: int) -> None:
        finite = np.isfinite(rows)
        if not finite.all():
            first = np.argwhere(~finite)[0]
            place = [start + int(first[0]), *map(int, first[1:])]
            raise FormatError(
                f"{self._named(lazy)} is {rows[tuple(first)]} at {place}, expected finite weights; fetch it again."
            )


def _numpy_type(dtype: str) -> np.dtype[Any]:
    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(dtype)


def _of_16_bits(raw: np.ndarray, dtype: str, shape: tuple[int, ...]) -> Tensor:
    """A frozen tensor over stored bytes; a copy where the file has them at an odd address."""
    values = raw.view(_numpy_type(dtype)).reshape(shape)
    return Tensor.from_numpy(values if values.flags.aligned else values.copy())


def _rows(lazy: LazyTensor, shape: tuple[int, ...], head_dim: int | None) -> Iterator[np.ndarray]:
    """The tensor in float32, a chunk of rows at a time; `head_dim` puts interleaved heads into half-split order."""
    if len(shape) == 1:
        values = lazy.load()
        yield values[half_split_rows(len(values), head_dim)] if head_dim else values
        return
    unit = head_dim or 1  # rows change places within their head only
    step = max(unit, ROW_CHUNK_BYTES // (4 * shape[1]) // unit * unit)
    for start in range(0, shape[0], step):
        rows = lazy.load_rows(start, min(start + step, shape[0]))
        yield rows[half_split_rows(len(rows), head_dim)] if head_dim else rows


def storage_of(checkpoint: Checkpoint, policy: StoragePolicy) -> Storage:
    """The weight types of a checkpoint that was checked."""
    types = {name: lazy.type for name, lazy in checkpoint.tensors.items()}
    return policy.storage(checkpoint.config.parameter_shapes(), types)
