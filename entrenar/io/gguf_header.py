"""The header of a GGUF file, walked before the library parses it: every length is held against the file's size.

The library believes what a file says: an array of 2^60 entries keeps it busy for ever, and sizes wrap around at 2^64.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

from entrenar.errors import FormatError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
LEAST_TENSOR_BYTES = 24  # of a tensor's entry: name length, axes, type, offset
LEAST_FIELD_BYTES = 13  # of a metadata entry: key length, type, one byte of value
MOST_AXES = 8
MOST_ENTRIES = 1 << 22  # of all arrays: the library keeps an object for each; real vocabularies have under a million
MOST_ELEMENTS = 1 << 48


def check_header(path: Path) -> None:
    """FormatError where the file is missing, is no GGUF, or its header says what its size cannot hold."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(24)
            _check_start(path, size, start)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _, tensors, fields = struct.unpack("<IQQ", start[4:])
                _Walk(path, data).header(tensors, fields)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); expected a GGUF file.") from error


def _check_start(path: Path, size: int, start: bytes) -> None:
    """Magic, version and counts."""
    if start[:4] != MAGIC:
        raise FormatError(f"{path}: starts with {start[:4]!r}, expected {MAGIC!r}; it is not a GGUF file.")
    if len(start) < 24:
        raise FormatError(f"{path}: is truncated after {size} bytes; fetch the file again.")
    version, tensors, fields = struct.unpack("<IQQ", start[4:])
    if version not in VERSIONS:
        raise FormatError(
            f"{path}: is GGUF version {version}, expected one of {VERSIONS}; convert it with a newer tool."
        )
    if tensors * LEAST_TENSOR_BYTES + fields * LEAST_FIELD_BYTES > size:
        raise FormatError(
            f"{path}: names {tensors} tensors and {fields} metadata entries, more than its {size} bytes can hold; "
            "the file is damaged."
        )


class _Walk:
    """Steps over one entry of the header after the other."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size = path, data, len(data)
        self.offset, self.entries = 24, 0
        self.where = "the header"

    def header(self, tensors: int, fields: int) -> None:
        for number in range(fields):
            self.where = f"metadata entry {number + 1}"
            self.where = f"the metadata key {self.string()!r}"
            self.value(self.u32())
        for number in range(tensors):
            self.where = f"tensor entry {number + 1}"
            self.where = f"the tensor {self.string()!r}"
            self.tensor()

    def damaged(self, what: str) -> FormatError:
        return FormatError(f"{self.path}: is truncated or damaged: {self.where} {what}; fetch the file again.")

    def take(self, count: int) -> int:
        """The offset of the next `count` bytes."""
        start = self.offset
        if count > self.size - start:
            raise self.damaged(f"needs {count} bytes where {self.size - start} are left")
        self.offset += count
        return start

    def u32(self) -> int:
        return int(struct.unpack_from("<I", self.data, self.take(4))[0])

    def u64(self) -> int:
        return int(struct.unpack_from("<Q", self.data, self.take(8))[0])

    def string(self) -> str:
        length = self.u64()
        start = self.take(length)
        return self.data[start : start + min(length, 100)].decode("utf-8", "replace")

    def value(self, kind: int) -> None:
        if kind == ARRAY:
            self.array(self.u32(), self.u64())
        elif kind == STRING:
            self.take(self.u64())
        elif kind in SCALAR_BYTES:
            self.take(SCALAR_BYTES[kind])
        else:
            raise self.damaged(f"has the type {kind}, which no GGUF file has")

    def array(self, kind: int, count: int) -> None:
        if kind != STRING and kind not in SCALAR_BYTES:
            raise self.damaged(f"is an array of the type {kind}, expected numbers or texts")
        self.entries += count
        if self.entries > MOST_ENTRIES:
            raise self.damaged(f"is an array of {count} entries, which brings all arrays beyond {MOST_ENTRIES}")
        if kind in SCALAR_BYTES:
            self.take(count * SCALAR_BYTES[kind])
            return
        for _ in range(count):
            self.take(self.u64())

    def tensor(self) -> None:
        axes = self.u32()
        if not 1 <= axes <= MOST_AXES:
            raise self.damaged(f"has {axes} axes, expected 1 to {MOST_AXES}")
        shape = [self.u64() for _ in range(axes)]
        if math.prod(shape) > MOST_ELEMENTS:
            raise self.damaged(f"has the shape {tuple(reversed(shape))}, more elements than any file holds")
        self.take(4)  # its type: the library knows which there are
        start = self.u64()
        if start > self.size:
            raise self.damaged(f"starts at byte {start} of the data, beyond the file's {self.size}")
