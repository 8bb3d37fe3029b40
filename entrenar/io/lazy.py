"""LazyTensor: a named array in a file, read when asked for, a run of rows at a time if need be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from entrenar.errors import FormatError


def read_bytes(path: Path, offset: int, count: int) -> np.ndarray:
    """`count` bytes of a file as uint8. Mapped pages would count as this process's memory for as long as they stay."""
    out = np.empty(count, np.uint8)
    left = out.data
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while left:
            got = file.readinto(left)
            if not got:
                raise FormatError(
                    f"{path}: ends at byte {offset + count - len(left)}, expected {offset + count} bytes."
                )
            left = left[got:]
    return out


class LazyTensor(ABC):
    """One tensor of a checkpoint file. Shapes are in NumPy order: the last axis is contiguous.

    `type` names how the elements are stored: "F32", "F16", "BF16", "Q4_1", ...
    """

    def __init__(self, name: str, shape: tuple[int, ...], type: str) -> None:
        self.name, self.shape, self.type = name, shape, type

    @abstractmethod
    def raw(self) -> np.ndarray:
        """The stored bytes, uint8: one row of bytes for each row of the tensor; of a GGUF file mapped, not read."""

    @abstractmethod
    def load_rows(self, start: int, stop: int) -> np.ndarray:
        """Elements [start, stop) along the first axis, in float32; FormatError for a type without a meaning."""

    def load(self) -> np.ndarray:
        """The whole tensor in float32."""
        if not self.shape:
            return self.load_rows(0, 1).reshape(())
        return self.load_rows(0, self.shape[0])

    def __repr__(self) -> str:
        return f"LazyTensor({self.name}, {self.shape}, {self.type})"
