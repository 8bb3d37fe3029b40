"""GGUF files through the `gguf` library: metadata as plain values, tensors mapped, or dequantized when asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from entrenar.errors import FormatError
from entrenar.io.gguf_header import check_header
from entrenar.io.lazy import FileBytes, LazyTensor


class GGUFTensor(LazyTensor):
    """A tensor of a GGUF file; `raw()` gives whole blocks of a quantized type, a row of bytes for each row."""

    def __init__(self, file: FileBytes, tensor: Any) -> None:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        super().__init__(tensor.name, shape, tensor.tensor_type.name)
        self._file, self._data, self._type = file, tensor.data, tensor.tensor_type
        self._offset = int(tensor.data_offset)

    def raw(self) -> np.ndarray:
        data = np.ascontiguousarray(self._data)
        return data.view(np.uint8).reshape(self.shape[0] if self.shape else 1, -1)

    def read(self) -> np.ndarray:
        stored = self._file.read(self._offset, self._data.nbytes)
        return stored.reshape(self.shape[0] if self.shape else 1, -1)

    def load_rows(self, start: int, stop: int) -> np.ndarray:
        import gguf

        if start == stop or 0 in self.shape:  # which the library cannot
            return np.empty((stop - start, *self.shape[1:]), np.float32)
        mapped = self._data[start:stop]
        stored = self._file.read(self._offset + start * self._data.strides[0], mapped.nbytes)
        try:
            values = gguf.dequantize(stored.view(mapped.dtype).reshape(mapped.shape), self._type)
        except NotImplementedError as error:
            raise FormatError(
                f"{self._file.path}: the tensor {self.name} has type {self.type}, which the gguf library cannot "
                "dequantize; use a file of another quantization."
            ) from error
        return np.ascontiguousarray(values, dtype=np.float32)


def _reader(path: Path) -> Any:
    """The library's reader over a plain view of the mapped file: np.memmap's own slices, one a token, cost seconds."""
    import gguf

    class Reader(gguf.GGUFReader):
        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: np.memmap) -> None:
            self._data = mapped.view(np.ndarray)

    return Reader(path)


class GGUFFile:
    """The metadata and tensors of a GGUF file.

    Raises FormatError where the file is missing, is no GGUF, or is shorter than it says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        check_header(self.path)
        file = FileBytes(self.path)
        try:
            reader = _reader(self.path)
            self.metadata: dict[str, Any] = {
                name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")
            }
            self.tensors = {tensor.name: GGUFTensor(file, tensor) for tensor in reader.tensors}
        except Exception as error:  # on a hostile file the library raises whatever its parsing runs into
            raise FormatError(
                f"{self.path}: is truncated or damaged ({type(error).__name__}: {error}); fetch the file again."
            ) from error
