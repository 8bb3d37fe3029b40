"""A weight -> the rows of its tensor in a GGUF file, a run of rows at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from entrenar.autograd.quantized import QuantizedTensor
from entrenar.autograd.weight_types import gguf_weight_type, weight_type
from entrenar.errors import FormatError, QuantizationError
from entrenar.models.gguf_model import interleaved_rows
from entrenar.models.rounded import rounded
from entrenar.nn.module import Weight

ROW_BYTES = 8 << 20  # of float32 rows that are converted at a time
MEASURED_ROWS = 64  # of each matrix that is rounded, for what is said of the change
HALVES = {"F16": "float16", "BF16": "bfloat16"}


def stored_type(weight: Weight) -> str | None:
    """The GGUF type that has the weight's own values bit for bit; None where only F32 does."""
    return weight_type(weight.weight_type if isinstance(weight, QuantizedTensor) else weight.dtype).gguf_name


@dataclass
class Rounding:
    """What is changed in the matrices that become one type: sums of squares over their first rows."""

    matrices: int = 0
    error: float = 0.0
    size: float = 0.0

    def add(self, rows: np.ndarray, written: np.ndarray) -> None:
        """Count a matrix: its first rows, and what they are in the file."""
        change = written - rows
        self.matrices += 1
        self.error += float(np.vdot(change, change))
        self.size += float(np.vdot(rows, rows))

    @property
    def relative(self) -> float:
        """The root mean square of the change over that of the values."""
        return math.sqrt(self.error / self.size) if self.size else 0.0


@dataclass
class RowEncoder:
    """Makes the rows of tensors; `rounded` has what that changed, by GGUF type, of the matrices that were not kept."""

    rounded: dict[str, Rounding] = field(default_factory=dict)

    def __call__(self, name: str, weight: Weight, to: str, head_dim: int | None) -> Iterator[np.ndarray]:
        """The rows of `weight` as type `to`; `head_dim` puts them into the order of an interleaved rotary embedding.

        Raises FormatError, with the tensor's `name`, for values that the type cannot hold.
        """
        columns = weight.shape[1] if weight.ndim > 1 else 1
        unit = head_dim or 1
        step = max(unit, ROW_BYTES // (4 * max(columns, 1)) // unit * unit)
        kept = stored_type(weight) == to
        for start in range(0, weight.shape[0], step):
            stop = min(start + step, weight.shape[0])
            rows = _stored(weight, start, stop) if kept else _values(weight, start, stop)
            if head_dim is not None:
                rows = rows[interleaved_rows(len(rows), head_dim)]
            yield rows if kept or to == "F32" else self._encoded(name, rows, to, start)

    def _encoded(self, name: str, rows: np.ndarray, to: str, start: int) -> np.ndarray:
        encoded, decoded = _half(name, rows, to, start) if to in HALVES else _quantized(name, rows, to)
        if start == 0:
            self.rounded.setdefault(to, Rounding()).add(rows[:MEASURED_ROWS], decoded)
        return encoded


def _stored(weight: Weight, start: int, stop: int) -> np.ndarray:
    """Rows in the elements or quantized values that the weight has."""
    array = weight.quantized_values if isinstance(weight, QuantizedTensor) else weight.numpy()
    return array[start:stop]


def _values(weight: Weight, start: int, stop: int) -> np.ndarray:
    """Rows in float32."""
    if isinstance(weight, QuantizedTensor):
        return weight.dequantize_rows(start, stop)
    return np.asarray(weight.numpy()[start:stop], np.float32)


def _half(name: str, rows: np.ndarray, to: str, start: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows of 16 bits, the values of the first MEASURED_ROWS of them) of float32 rows."""
    half = rounded(name, rows, HALVES[to], start)
    return half, half[:MEASURED_ROWS].astype(np.float32)


def _quantized(name: str, rows: np.ndarray, to: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows of quantized values, the values of the first MEASURED_ROWS of them) of float32 rows."""
    type_ = gguf_weight_type(to)
    assert type_ is not None  # of FILE_TYPES, or the model's own
    try:
        quantized = QuantizedTensor.quantize(rows, type_.name)
    except QuantizationError as error:
        raise FormatError(f"The tensor {name} cannot become {to}: {error}") from error
    return quantized.quantized_values, quantized.dequantize_rows(0, min(MEASURED_ROWS, len(rows)))
