"""GGUF files: metadata as plain values, tensors mapped, or dequantized by the `gguf` library when asked for."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from entrenar.errors import FormatError
from entrenar.io.gguf_header import Header, TensorEntry, read_header
from entrenar.io.lazy import FileBytes, LazyTensor

# which the library takes as arrays of their own type
FLOATS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
SPLIT_COUNT, SPLIT_NUMBER, SPLIT_TENSORS = "split.count", "split.no", "split.tensors.count"


@functools.cache
def dequantizable(type_: Any) -> bool:
    """Whether the library gives float32 for this GGMLQuantizationType."""
    import gguf

    if type_.name in FLOATS:
        return True
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[type_][1]), np.uint8), type_)
    except NotImplementedError:
        return False
    return True


class GGUFTensor(LazyTensor):
    """A tensor of a GGUF file; `raw()` gives whole blocks of a quantized type, a row of bytes for each row."""

    def __init__(self, file: FileBytes, entry: TensorEntry) -> None:
        super().__init__(entry.name, entry.shape, entry.type.name)
        self._file, self._entry = file, entry
        self._rows = entry.shape[0] if len(entry.shape) > 1 else 1
        self.weights = dequantizable(entry.type)

    @property
    def nbytes(self) -> int:
        return self._entry.size

    def raw(self) -> np.ndarray:
        return self._file.map(self._entry.offset, self._entry.size).reshape(self._rows, -1)

    def read(self) -> np.ndarray:
        return self._read(0, self._rows)

    def _read(self, start: int, stop: int) -> np.ndarray:
        each = self._entry.size // max(self._rows, 1)
        return self._file.read(self._entry.offset + start * each, (stop - start) * each).reshape(stop - start, -1)

    def load_rows(self, start: int, stop: int) -> np.ndarray:
        import gguf

        if not self.weights:
            raise FormatError(
                f"{self._file.path}: the tensor {self.name} has type {self.type}, which the gguf library cannot "
                "dequantize; use a file of another quantization."
            )
        if start == stop or 0 in self.shape:  # which the library cannot
            return np.empty((stop - start, *self.shape[1:]), np.float32)
        if len(self.shape) == 1:  # blocks, not elements, are what is stored
            return self._values(self._read(0, 1), gguf).reshape(-1)[start:stop]
        return self._values(self._read(start, stop), gguf).reshape(stop - start, *self.shape[1:])

    def _values(self, stored: np.ndarray, gguf: Any) -> np.ndarray:
        rows = stored.reshape(-1, self._entry.row_bytes)
        if self.type in FLOATS:
            return np.ascontiguousarray(rows.view(FLOATS[self.type]), dtype=np.float32)
        with np.errstate(all="ignore"):  # scales that are no numbers are found by who uses them
            return np.ascontiguousarray(gguf.dequantize(rows, self._entry.type), dtype=np.float32)


class GGUFFile:
    """The metadata and tensors of a GGUF file; where it is one of several parts, of all of them.

    `paths` has the files, part 1 first, whose metadata are those of the model. Raises FormatError where a file is
    missing, is no GGUF, is shorter than it says, or is no part of the others' model.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.tensors: dict[str, GGUFTensor] = {}
        given = _open(self.path)
        count, self.paths = _parts(self.path, given[1].metadata)
        first = given
        for number, part in enumerate(self.paths):
            file, header = given if part == self.path else _open(part)
            if number == 0:
                first = file, header
            if count > 1:
                _check_part(self.path, part, number, count, header.metadata)
            self._add(file, header)
        self.metadata = first[1].metadata
        expected = self.metadata.get(SPLIT_TENSORS)
        if count > 1 and expected != len(self.tensors):
            raise FormatError(
                f"{self.paths[0]}: its {count} parts have {len(self.tensors)} tensors, expected the {SPLIT_TENSORS} of "
                f"{expected}; fetch all parts of one model again."
            )

    def _add(self, file: FileBytes, header: Header) -> None:
        for entry in header.tensors:
            if entry.name in self.tensors:
                raise FormatError(
                    f"{file.path}: the tensor {entry.name} is in another part too; fetch all parts again."
                )
            self.tensors[entry.name] = GGUFTensor(file, entry)


def _open(path: Path) -> tuple[FileBytes, Header]:
    file = FileBytes(path)
    return file, read_header(file)


def _ending(number: int, count: int) -> str:
    return f"-{number:05d}-of-{count:05d}.gguf"


def _parts(path: Path, metadata: dict[str, Any]) -> tuple[int, list[Path]]:
    """The number of parts and their files, all of which exist; (1, the file) for one that is whole."""
    count, number = metadata.get(SPLIT_COUNT, 0), metadata.get(SPLIT_NUMBER, 0)
    for key, value in ((SPLIT_COUNT, count), (SPLIT_NUMBER, number)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**16:
            raise FormatError(f"{path}: {key} is {value!r}, expected a number of parts; fetch the file again.")
    if count <= 1:
        return 1, [path]
    which, ending = f"is part {number + 1} of {count}", _ending(number + 1, count)
    if number >= count:
        raise FormatError(
            f"{path}: {SPLIT_NUMBER} is {number}, expected less than the {SPLIT_COUNT} of {count}; fetch it again."
        )
    if not path.name.endswith(ending):
        raise FormatError(
            f"{path}: {which}, and the other parts are found by a name that ends in {ending!r}; give the files back "
            "their names."
        )
    stem = path.name.removesuffix(ending)
    parts = [path.with_name(stem + _ending(other, count)) for other in range(1, count + 1)]
    missing = [str(other) for other, part in enumerate(parts, start=1) if not part.exists()]
    if missing:
        few = ", ".join(missing[:10]) + ", ..." * (len(missing) > 10)
        lost = f"part {few} is" if len(missing) == 1 else f"parts {few} are"
        raise FormatError(
            f"{path}: {which}: {lost} missing; put all parts ({stem}-0000N-of-{count:05d}.gguf) into one folder."
        )
    return count, parts


def _check_part(given: Path, path: Path, number: int, count: int, own: dict[str, Any]) -> None:
    """FormatError where a file is not the part that its name says."""
    found = (own.get(SPLIT_NUMBER), own.get(SPLIT_COUNT))
    if found != (number, count):
        raise FormatError(
            f"{path}: has {SPLIT_NUMBER} {found[0]} and {SPLIT_COUNT} {found[1]}, expected {number} and {count} by its "
            f"name and by {given.name}; fetch all parts of one model again."
        )
