"""The header of a GGUF file, read in one pass: every length is held against the file's size before it is used.

What llama.cpp refuses is refused here too: other versions and byte orders, nested arrays, a key or tensor twice, more
than four axes, rows that are no whole blocks, data that do not lie one after the other.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from entrenar.errors import FormatError
from entrenar.io.lazy import FileBytes
from entrenar.io.no_gguf import what_it_is

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
UINT32, STRING, ARRAY = 4, 8, 9
ALIGNMENT_KEY, ALIGNMENT = "general.alignment", 32
LEAST_TENSOR_BYTES = 24  # of a tensor's entry: name length, axes, type, offset
LEAST_FIELD_BYTES = 13  # of a metadata entry: key length, type, one byte of value
MERGES = "tokenizer.ggml.merges"
MOST_AXES = 4
MOST_NAME_BYTES = 63  # of a tensor, in llama.cpp
MOST_ENTRIES = 1 << 22  # of all arrays: each becomes an object; real vocabularies have under a million
MOST_ELEMENTS = 1 << 48
REMOVED_TYPES = {4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4",
                 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"}  # fmt: skip
U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor's bytes lie. `shape` is in NumPy order; `type` is the library's GGMLQuantizationType."""

    name: str
    shape: tuple[int, ...]
    type: Any
    offset: int
    row_bytes: int  # of the contiguous axis

    @property
    def size(self) -> int:
        """All bytes."""
        return math.prod(self.shape[:-1]) * self.row_bytes


@dataclass(frozen=True)
class Header:
    """Metadata as plain values (numbers, texts, lists of them), and the tensors in the file's order."""

    metadata: dict[str, Any]
    tensors: list[TensorEntry]


def read_header(file: FileBytes) -> Header:
    """FormatError where the file is no GGUF, or its header says what its size cannot hold."""
    _, tensors, fields = _check_start(file)
    return _Reader(file).header(tensors, fields)


def _check_start(file: FileBytes) -> tuple[int, int, int]:
    """(version, number of tensors, number of metadata entries)."""
    path, size = file.path, file.size
    start = file.read(0, min(24, size)).tobytes()
    if not start:
        raise FormatError(f"{path}: is empty, expected a GGUF file; fetch it again.")
    if start[:4] != MAGIC:
        what = what_it_is(start)
        raise FormatError(
            f"{path}: begins with the bytes {start[:4].hex(' ')}, expected {MAGIC.hex(' ')} (GGUF); "
            f"it is not a GGUF file{what and f' but {what}'}."
        )
    if len(start) < 24:
        raise FormatError(f"{path}: is truncated after {size} bytes; fetch the file again.")
    version, tensors, fields = struct.unpack("<IQQ", start[4:])
    if version & 0xFFFF == 0 and struct.unpack(">I", start[4:8])[0] in VERSIONS:
        raise FormatError(
            f"{path}: is a big-endian GGUF file, expected a little-endian one; convert it with "
            "`gguf-convert-endian FILE little`, or fetch the file for this machine."
        )
    if version not in VERSIONS:
        raise FormatError(
            f"{path}: is GGUF version {version}, expected {' or '.join(map(str, VERSIONS))}; "
            "convert it with a newer tool."
        )
    if tensors * LEAST_TENSOR_BYTES + fields * LEAST_FIELD_BYTES > size:
        raise FormatError(
            f"{path}: names {tensors} tensors and {fields} metadata entries, more than its {size} bytes can hold; "
            "the file is damaged."
        )
    return version, tensors, fields


class Texts(Sequence[str]):
    """An array of texts that stays in the mapped file, decoded when asked for: as objects merges take megabytes."""

    def __init__(self, data: memoryview, start: int, count: int) -> None:
        self._data, self._start, self._count = data, start, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        offset = self._start
        for _ in range(self._count):
            end = offset + 8 + U64.unpack_from(self._data, offset)[0]
            yield str(self._data[offset + 8 : end], "utf-8")
            offset = end

    def __getitem__(self, index: Any) -> Any:
        return list(self)[index]

    def __eq__(self, other: object) -> bool:
        return list(self) == (list(other) if isinstance(other, Texts) else other)

    __hash__ = None  # type: ignore[assignment]


class _Reader:
    """Reads one entry of the header after the other."""

    def __init__(self, file: FileBytes) -> None:
        self.path, self.size = file.path, file.size
        self.data = file.map(0, self.size).data
        self.offset, self.entries = 24, 0
        self.where = "the header"

    def header(self, tensors: int, fields: int) -> Header:
        metadata: dict[str, Any] = {}
        alignment = ALIGNMENT
        for number in range(fields):
            self.where = f"metadata entry {number + 1}"
            key = self.string()
            self.where = f"the metadata key {key[:100]!r}"
            if key in metadata:
                raise self.damaged("is there twice")
            kind = self.u32()
            metadata[key] = self.merges() if key == MERGES and kind == ARRAY else self.value(kind)
            if key == ALIGNMENT_KEY:
                alignment = self.alignment(kind, metadata[key])
        entries = self.tensor_entries(tensors, alignment)
        return Header(metadata, entries)

    def damaged(self, what: str) -> FormatError:
        return FormatError(f"{self.path}: is truncated or damaged: {self.where} {what}; fetch the file again.")

    def alignment(self, kind: int, value: Any) -> int:
        if kind != UINT32 or value == 0 or value & (value - 1):
            raise self.damaged(f"is {value!r}, expected a power of two in 32 bits without sign")
        return int(value)

    # ------------------------------------------------------------------ values
    def take(self, count: int) -> int:
        """The offset of the next `count` bytes."""
        start = self.offset
        if count > self.size - start:
            raise self.damaged(f"needs {count} bytes where {self.size - start} are left")
        self.offset += count
        return start

    def u32(self) -> int:
        return int(U32.unpack_from(self.data, self.take(4))[0])

    def u64(self) -> int:
        return int(U64.unpack_from(self.data, self.take(8))[0])

    def string(self) -> str:
        length = self.u64()
        start = self.take(length)
        try:
            return str(self.data[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged("holds a text that is no UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind == ARRAY:
            return self.array(self.u32(), self.u64())
        if kind == STRING:
            return self.string()
        if kind not in SCALARS:
            raise self.damaged(f"has the type {kind}, which no GGUF file has")
        return struct.unpack_from(SCALARS[kind], self.data, self.take(struct.calcsize(SCALARS[kind])))[0]

    def merges(self) -> Any:
        """An array whose texts are checked and not kept."""
        start = self.offset + 12  # the type and the count come before
        found = self.value(ARRAY)
        texts = bool(found) and isinstance(found[0], str)
        return Texts(self.data, start, len(found)) if texts else found

    def array(self, kind: int, count: int) -> list[Any]:
        if kind != STRING and kind not in SCALARS:
            raise self.damaged(f"is an array of the type {kind}, expected numbers or texts")
        self.entries += count
        if self.entries > MOST_ENTRIES:
            raise self.damaged(f"is an array of {count} entries, which brings all arrays beyond {MOST_ENTRIES}")
        if kind == STRING:
            return self.strings(count)
        type_ = np.dtype(SCALARS[kind])
        start = self.take(count * type_.itemsize)
        values: list[Any] = np.frombuffer(self.data, type_, count, start).tolist()
        return values

    def strings(self, count: int) -> list[str]:
        """As `string`, without a call a text: vocabularies have 128,000 of them."""
        if count * 8 > self.size - self.offset:
            self.take(count * 8)
        found, data, size, offset, length_at = [], self.data, self.size, self.offset, U64.unpack_from
        try:
            for _ in range(count):
                end = offset + 8 + length_at(data, offset)[0]
                if end > size:
                    self.offset = offset + 8
                    self.take(end - offset - 8)
                found.append(str(data[offset + 8 : end], "utf-8"))
                offset = end
        except UnicodeDecodeError as error:
            raise self.damaged(f"holds a text that is no UTF-8 (entry {len(found)})") from error
        except struct.error as error:
            raise self.damaged(f"ends with the file after {len(found)} of {count} texts") from error
        self.offset = offset
        return found

    # ------------------------------------------------------------------ tensors
    def tensor_entries(self, count: int, alignment: int) -> list[TensorEntry]:
        raw: dict[str, tuple[tuple[int, ...], Any, int, int]] = {}
        for number in range(count):
            self.where = f"tensor entry {number + 1}"
            name = self.string()
            self.where = f"the tensor {name[:100]!r}"
            if len(name.encode()) > MOST_NAME_BYTES:
                raise self.damaged(f"has a name of {len(name.encode())} bytes, expected at most {MOST_NAME_BYTES}")
            if name in raw:
                raise self.damaged("is there twice")
            raw[name] = self.tensor()
        data_start = -(-self.offset // alignment) * alignment
        entries, expected = [], 0
        for name, (shape, type_, row_bytes, offset) in raw.items():
            self.where = f"the tensor {name!r}"
            entry = TensorEntry(name, shape, type_, data_start + offset, row_bytes)
            if offset != expected:
                raise self.damaged(f"starts at byte {offset} of the data, expected {expected}, where the last one ends")
            if entry.offset + entry.size > self.size:
                raise self.damaged(
                    f"of type {type_.name} ends at byte {entry.offset + entry.size} of the file, which has {self.size}"
                )
            expected += -(-entry.size // alignment) * alignment
            entries.append(entry)
        return entries

    def tensor(self) -> tuple[tuple[int, ...], Any, int, int]:
        """(shape, type, bytes of a row, offset in the data) of one entry."""
        import gguf

        axes = self.u32()
        if not 1 <= axes <= MOST_AXES:
            raise self.damaged(f"has {axes} axes, expected 1 to {MOST_AXES}")
        shape = tuple(reversed([self.u64() for _ in range(axes)]))
        if math.prod(shape) > MOST_ELEMENTS:
            raise self.damaged(f"has the shape {shape}, more elements than any file holds")
        number = self.u32()
        try:
            type_ = gguf.GGMLQuantizationType(number)
        except ValueError as error:
            raise FormatError(f"{self.path}: {self.where} has the type {_unknown_type(number)}") from error
        elements, size = gguf.GGML_QUANT_SIZES[type_]
        if shape[-1] % elements:
            raise self.damaged(
                f"of type {type_.name} has rows of {shape[-1]} elements, expected a multiple of {elements}"
            )
        return shape, type_, shape[-1] // elements * size, self.u64()


def _unknown_type(number: int) -> str:
    if number in REMOVED_TYPES:
        return f"{REMOVED_TYPES[number]}, which llama.cpp no longer reads; use a file in Q4_0 or another type."
    return (
        f"{number}, which this version of the gguf library does not know; use a file of a type that llama.cpp has, "
        "or a newer gguf library."
    )
