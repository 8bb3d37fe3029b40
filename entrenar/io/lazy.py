"""LazyTensor: a named array in a file, read when asked for, a run of rows at a time if need be."""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from entrenar.errors import FormatError


class FileBytes:
    """A file, open for reading at any offset: what was opened stays what is read, even where its name changes hands.

    Converted tensors are read, not mapped: mapped pages would count as this process's memory for as long as they stay.
    Raises FormatError where the file cannot be opened or read, or is shorter than what is asked for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise FormatError(f"{path}: cannot be opened ({error.strerror}).") from error
        weakref.finalize(self, os.close, self._descriptor)

    def read(self, offset: int, count: int) -> np.ndarray:
        """`count` bytes from `offset` on, as uint8."""
        out = np.empty(count, np.uint8)
        left = out.data
        while left:
            try:
                got = os.preadv(self._descriptor, [left], offset + count - len(left))
            except OSError as error:
                raise FormatError(f"{self.path}: cannot be read ({error.strerror}).") from error
            if not got:
                size = os.fstat(self._descriptor).st_size
                raise FormatError(
                    f"{self.path}: has {size} bytes, expected {offset + count} or more; it was cut off after it was "
                    "opened, fetch it again."
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
