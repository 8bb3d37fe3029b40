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
    """The metadata and tensors of a GGUF file and of its further parts, if it is the first of several.

    `paths` has the files. Raises FormatError where one is missing, is no GGUF, or is shorter than it says.
    """

    def __init__(self, path: str | Path) -> None:
        self.paths: list[Path] = []
        self.tensors: dict[str, GGUFTensor] = {}
        self.path = Path(path)
        self.metadata = self._add(self.path)
        for number, part in enumerate(_further_parts(self.path, self.metadata), start=1):
            _check_part(self.path, part, number, self.metadata, self._add(part))
        expected = self.metadata.get(SPLIT_TENSORS)
        if len(self.paths) > 1 and expected != len(self.tensors):
            raise FormatError(
                f"{self.path}: its {len(self.paths)} parts have {len(self.tensors)} tensors, expected the "
                f"{SPLIT_TENSORS} of {expected}; fetch all parts of one model again."
            )

    def _add(self, path: Path) -> dict[str, Any]:
        """Take a file's tensors; returns its metadata."""
        file = FileBytes(path)
        header: Header = read_header(file)
        self.paths.append(path)
        for entry in header.tensors:
            if entry.name in self.tensors:
                raise FormatError(f"{path}: the tensor {entry.name} is in another part too; fetch all parts again.")
            self.tensors[entry.name] = GGUFTensor(file, entry)
        return header.metadata


def _ending(number: int, count: int) -> str:
    return f"-{number:05d}-of-{count:05d}.gguf"


def _further_parts(path: Path, metadata: dict[str, Any]) -> list[Path]:
    """The files of the parts after the first, all of which exist; none for a file that is whole."""
    count, number = metadata.get(SPLIT_COUNT, 0), metadata.get(SPLIT_NUMBER, 0)
    for key, value in ((SPLIT_COUNT, count), (SPLIT_NUMBER, number)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**16:
            raise FormatError(f"{path}: {key} is {value!r}, expected a number of parts; fetch the file again.")
    if count <= 1:
        return []
    ending = _ending(number + 1, count)
    if not path.name.endswith(ending):
        raise FormatError(
            f"{path}: is part {number + 1} of {count}, and the other parts are found by a name that ends in "
            f"{ending!r}; give the files back their names."
        )
    stem = path.name.removesuffix(ending)
    if number != 0:
        raise FormatError(f"{path}: is part {number + 1} of {count}; give part 1, {stem + _ending(1, count)}.")
    parts = [path.with_name(stem + _ending(other, count)) for other in range(2, count + 1)]
    missing = [str(other) for other, part in enumerate(parts, start=2) if not part.exists()]
    if missing:
        which = f"part {missing[0]} is" if len(missing) == 1 else f"parts {', '.join(missing[:10])} are"
        raise FormatError(
            f"{path}: is part 1 of {count}: {which} missing; put all parts ({stem}-0000N-of-{count:05d}.gguf) into one "
            "folder."
        )
    return parts


def _check_part(first: Path, path: Path, number: int, metadata: dict[str, Any], own: dict[str, Any]) -> None:
    """FormatError where a file is not the part that its name says."""
    found = (own.get(SPLIT_NUMBER), own.get(SPLIT_COUNT))
    if found != (number, metadata[SPLIT_COUNT]):
        raise FormatError(
            f"{path}: has {SPLIT_NUMBER} {found[0]} and {SPLIT_COUNT} {found[1]}, expected {number} and "
            f"{metadata[SPLIT_COUNT]} of a part of {first.name}; fetch all parts of one model again."
        )
