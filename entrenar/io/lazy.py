"""LazyTensor: a named array in a file, read when asked for, a run of rows at a time if need be."""

from __future__ import annotations

import mmap
import os
import stat
import weakref
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from entrenar.errors import FormatError, printable
from entrenar.io import mapped


class FileBytes:
    """A file, open for reading at any offset: what was opened stays what is read, even where its name goes to another.

    Tensors that are used as they are stored are mapped. Those that are converted are read: mapped pages would count as
    this process's memory for as long as they stay. A file that is mapped must not be written to in place: where it is
    cut off, the process ends with a sentence that names it (see `sigbus.c`).
    Raises FormatError where the file cannot be opened or read, is a pipe or a device, or is shorter than what is asked
    for.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:  # without waiting: a pipe that nobody writes to would hold us for ever
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:  # ValueError: a path that no system has
            reason = error.strerror if isinstance(error, OSError) else error
            raise FormatError(f"{path}: cannot be opened ({reason}); expected a file of weights.") from error
        weakref.finalize(self, os.close, self._descriptor)
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
            raise FormatError(f"{path}: is {kind}, expected a file that can be read at any place.")
        self.size = status.st_size  # when it was opened
        self._mapping: mmap.mmap | None = None

    def map(self, offset: int, count: int) -> np.ndarray:
        """`count` bytes from `offset` on, as read-only uint8 that the system reads when they are touched."""
        try:
            if self._mapping is None:
                self._mapping = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
                watched = mapped.watch(self._mapping, printable(str(self.path)).encode())
                weakref.finalize(self._mapping, mapped.forget, watched)
        except (OSError, ValueError) as error:
            raise FormatError(f"{self.path}: cannot be mapped ({error}).") from error
        if offset + count > len(self._mapping):
            raise self._cut_off(offset + count)
        return np.frombuffer(self._mapping, np.uint8, count, offset)

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
                raise self._cut_off(offset + count)
            left = left[got:]
        return out

    def _cut_off(self, expected: int) -> FormatError:
        size = os.fstat(self._descriptor).st_size
        return FormatError(
            f"{self.path}: has {size} bytes, expected {expected} or more; it was cut off after it was opened, fetch it "
            "again."
        )


class LazyTensor(ABC):
    """One tensor of a checkpoint file. Shapes are in NumPy order: the last axis is contiguous.

    `type` names how the elements are stored, as GGUF does: "F32", "F16", "BF16", ...
    """

    def __init__(self, name: str, shape: tuple[int, ...], type: str) -> None:
        self.name, self.shape, self.type = name, shape, type

    @abstractmethod
    def raw(self) -> np.ndarray:
        """The stored bytes, mapped: uint8, one row of bytes for each row of the tensor."""

    @property
    def nbytes(self) -> int:
        """The stored bytes."""
        return int(self.raw().nbytes)

    @abstractmethod
    def read(self) -> np.ndarray:
        """`raw()` in memory of its own."""

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
