"""GGUF files out: metadata and the list of tensors first, then each tensor's rows as they come.

Nothing is held but the header and the rows at hand. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from entrenar.config import shown
from entrenar.errors import FormatError
from entrenar.io.atomic import atomic_file
from entrenar.io.gguf_header import ALIGNMENT, ARRAY, MAGIC, MOST_NAME_BYTES, SCALARS, STRING, UINT32, Texts

VERSION = 3
UINT8, INT32, FLOAT32, BOOL, UINT64, INT64, FLOAT64 = 0, 5, 6, 7, 10, 11, 12
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write: its shape in NumPy order, the name of its GGUF type, and its rows of stored bytes on demand.

    `rows` yields arrays of any dtype whose bytes, one array after the other, are the tensor's.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    rows: Callable[[], Iterable[np.ndarray]]

    @property
    def nbytes(self) -> int:
        """The stored bytes; FormatError where a row is no whole number of blocks."""
        elements, size = block_of(self.type)
        if self.shape[-1] % elements:
            raise FormatError(
                f"The tensor {self.name} has rows of {self.shape[-1]} elements, expected a multiple of {elements} for "
                f"the type {self.type}; choose another type."
            )
        return math.prod(self.shape) // elements * size

    @property
    def number(self) -> int:
        """The number of the type in the file."""
        import gguf

        return int(gguf.GGMLQuantizationType[self.type])


def block_of(type: str) -> tuple[int, int]:
    """(elements, bytes) of a block of this GGUF type."""
    import gguf

    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type]]
    return int(elements), int(size)


def write_gguf(path: str | Path, metadata: Mapping[str, Any], tensors: Sequence[OutputTensor]) -> None:
    """Write a file under a temporary name and rename it when it is whole; the same input gives the same bytes.

    `metadata`: a Python int is an unsigned number of 32 bits where it is not negative (in a list: signed, as llama.cpp
    expects token types), a float one of 32 bits, bytes an array of uint8; what does not fit has 64 bits. Raises
    FormatError for a value or a name that no file can hold, for rows that do not fill their tensor, and where the place
    cannot be written.
    """
    header = _header(metadata, tensors)
    with atomic_file(path) as part, part.open("wb") as file:
        file.write(header)
        _pad(file, len(header))
        for tensor in tensors:
            written = 0
            for rows in tensor.rows():
                data = np.ascontiguousarray(rows)
                file.write(data.reshape(-1).view(np.uint8).data)
                written += data.nbytes
            if written != tensor.nbytes:
                raise FormatError(f"The tensor {tensor.name} came with {written} bytes, expected {tensor.nbytes}.")
            _pad(file, written)


def _pad(file: IO[bytes], size: int) -> None:
    file.write(bytes(-size % ALIGNMENT))


def _header(metadata: Mapping[str, Any], tensors: Sequence[OutputTensor]) -> bytes:
    out = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        kind, data = _value(key, value)
        out += [_string(key), struct.pack("<I", kind), data]
    offset = 0
    for tensor in tensors:
        name = _string(tensor.name)
        if len(name) - 8 > MOST_NAME_BYTES:
            raise FormatError(f"The tensor {tensor.name} has a name of more than {MOST_NAME_BYTES} bytes.")
        axes = tuple(reversed(tensor.shape))
        out.append(name + struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, tensor.number, offset))
        offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return b"".join(out)


def _string(text: str) -> bytes:
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError(f"The text {text[:50]!r} holds half a character, which no GGUF file can.") from error
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Any) -> tuple[int, bytes]:
    """(type, bytes) of a metadata value."""
    if isinstance(value, bytes):
        return ARRAY, struct.pack("<IQ", UINT8, len(value)) + value
    if isinstance(value, list | Texts):
        kind = _kind(key, value)
        return ARRAY, struct.pack("<IQ", kind, len(value)) + _elements(kind, value)
    kind = _kind(key, [value])
    if kind in (INT32, INT64) and 0 <= value < 2**32:
        kind = UINT32
    return kind, _elements(kind, [value])


def _elements(kind: int, values: Sequence[Any]) -> bytes:
    if kind == STRING:
        return b"".join(map(_string, values))
    return np.array(values, np.dtype(SCALARS[kind])).tobytes()


def _kind(key: str, values: Sequence[Any]) -> int:
    """The one type of some values: of 32 bits where they fit; of ints and floats it is that of floats."""
    types = {type(value) for value in values}
    if types <= {str}:
        return STRING
    if types == {bool}:
        return BOOL
    if types == {int}:
        for kind, least, most in ((INT32, -(2**31), 2**31), (INT64, -(2**63), 2**63), (UINT64, 0, 2**64)):
            if least <= min(values) and max(values) < most:
                return kind
        raise FormatError(f"The metadata key {key} holds {max(values)}, more than 64 bits can.")
    if types <= {int, float}:
        return FLOAT32 if all(math.isinf(value) or not abs(value) > LARGEST_FLOAT32 for value in values) else FLOAT64
    raise FormatError(f"The metadata key {key} holds {shown(values)}, expected texts, numbers or flags, all of a kind.")
