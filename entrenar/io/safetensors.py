"""safetensors files through the `safetensors` library: single files, shards, lazy reading, atomic writing."""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from entrenar.config import shown
from entrenar.errors import FormatError
from entrenar.io.atomic import atomic_file
from entrenar.io.json_file import parse_json, read_json_object
from entrenar.io.lazy import FileBytes, LazyTensor
from entrenar.io.no_gguf import what_it_is

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
FLOAT_TYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})  # values by themselves, without a scale
EIGHT_BITS = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}  # the names of ml_dtypes
LONGEST_NAME = 200  # characters of a shard's file name
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")


class SafetensorsTensor(LazyTensor):
    """A tensor of a safetensors file, `size` bytes from `offset` on."""

    def __init__(self, file: FileBytes, name: str, handle: Any, offset: int, size: int) -> None:
        view = handle.get_slice(name)
        super().__init__(name, tuple(view.get_shape()), view.get_dtype())
        self._file, self._offset = file, offset
        self._row_bytes = size // max(self.shape[0], 1) if self.shape else size
        self._size = size

    @property
    def nbytes(self) -> int:
        return self._size

    def raw(self) -> np.ndarray:
        rows = self.shape[0] if self.shape else 1
        return self._file.map(self._offset, rows * self._row_bytes).reshape(rows, self._row_bytes)

    def read(self) -> np.ndarray:
        return self._read(0, self.shape[0] if self.shape else 1)

    def _read(self, start: int, stop: int) -> np.ndarray:
        rows = stop - start
        data = self._file.read(self._offset + start * self._row_bytes, rows * self._row_bytes)
        return data.reshape(rows, self._row_bytes)

    def load_rows(self, start: int, stop: int) -> np.ndarray:
        raw = self._read(start, stop)
        shape = (stop - start, *self.shape[1:])
        if self.type == "BF16":
            return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
        if self.type in EIGHT_BITS:
            import ml_dtypes

            return raw.view(getattr(ml_dtypes, EIGHT_BITS[self.type])).astype(np.float32).reshape(shape)
        if self.type not in NUMPY_TYPES:
            raise FormatError(
                f"{self._file.path}: the tensor {self.name} has type {self.type}; expected F32, F16 or BF16 weights."
            )
        return raw.view(NUMPY_TYPES[self.type]).astype(np.float32).reshape(shape)


def open_safetensors(
    path: str | Path, missing: str = "expected safetensors weights", metadata: dict[str, Any] | None = None
) -> dict[str, LazyTensor]:
    """The tensors of one file by name. FormatError where it is missing, truncated or not safetensors.

    `missing` is what to say where there is no file; `metadata` is given what the file says of itself.
    """
    path = Path(path)
    from safetensors import SafetensorError, safe_open

    try:
        known = path.is_file()
    except (OSError, ValueError):  # a name that no file can have: too long, or with a zero byte in it
        known = False
    if not known and path.is_dir():
        raise FormatError(f"{path}: is a directory, expected a file of safetensors weights.")
    if not known:
        raise FormatError(f"{path}: no such file; {missing}.")
    try:
        handle = safe_open(path, framework="numpy")
    except (SafetensorError, OSError, ValueError) as error:
        beginning = FileBytes(path).read(0, min(24, path.stat().st_size)).tobytes()
        what = "" if beginning[8:9] == b"{" else what_it_is(beginning)  # with a header's brace it is a part of one
        if what:
            raise FormatError(f"{path}: is no safetensors file but {what}.") from error
        raise FormatError(
            f"{path}: is truncated, damaged or no safetensors file ({shown(str(error))}); fetch it again."
        ) from error
    if metadata is not None:
        metadata |= handle.metadata() or {}
    file = FileBytes(path)
    offsets, start = _offsets(file)
    return {
        name: SafetensorsTensor(file, name, handle, start + first, last - first)
        for name, (first, last) in offsets.items()
    }


def _offsets(file: FileBytes) -> tuple[dict[str, tuple[int, int]], int]:
    """Where each tensor's bytes lie, and where the data starts; the library has checked the header already."""
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    header = parse_json(file.read(8, length).tobytes(), f"{file.path}: its header")
    return {name: tuple(entry["data_offsets"]) for name, entry in header.items() if name != "__metadata__"}, 8 + length


def open_safetensors_directory(directory: str | Path) -> dict[str, LazyTensor]:
    """The tensors of a Hugging Face directory: model.safetensors, or those of the shards that its index names.

    FormatError where a file is missing or damaged, or where index and shards contradict each other.
    """
    directory = Path(directory)
    if (directory / SINGLE_FILE).exists():  # it comes before an index that lies beside it, as in transformers
        return open_safetensors(directory / SINGLE_FILE)
    index = directory / INDEX_FILE
    if not index.exists():
        pickled = [file for file in PICKLED if (directory / file).exists()]
        if pickled:
            raise FormatError(
                f"{directory}: holds {pickled[0]}, whose reading can run code that someone put there, and no "
                f"{SINGLE_FILE}; expected safetensors weights: fetch those, or convert the file with transformers."
            )
        others = sorted(file.name for file in directory.glob("*.safetensors"))
        hint = f"; {shown(others[0])} in it is none of these names" if others else ""
        raise FormatError(
            f"{directory}: has neither {SINGLE_FILE} nor {INDEX_FILE}; expected safetensors weights under them{hint}."
        )
    weight_map = read_json_object(index, "an index of shards").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{index}: has no weight_map; expected the shard of every tensor.")
    tensors: dict[str, LazyTensor] = {}
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file or len(file) > LONGEST_NAME:
            raise FormatError(f"{index}: names the shard {shown(file)}, expected a file in the same folder.")
    for file in dict.fromkeys(weight_map.values()):
        shard = open_safetensors(directory / file, f"{INDEX_FILE} names it as a shard: fetch it too")
        twice = sorted(shard.keys() & tensors.keys())
        if twice:
            raise FormatError(f"{directory / file}: holds the tensor {twice[0]}, which another shard holds too.")
        tensors |= shard
    missing = sorted(set(weight_map) - set(tensors))
    if missing:
        raise FormatError(f"{index}: promises the tensor {missing[0]}, which none of its shards holds.")
    return tensors


def weight_files(directory: Path) -> list[str]:
    """The names in `directory` that `save_sharded` gives a model's weights."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return [name for name in names if name in (SINGLE_FILE, INDEX_FILE) or SHARD.fullmatch(name)]


def save_safetensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write float32, bfloat16 (ml_dtypes) or other NumPy arrays to one file, atomically."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with atomic_file(path) as temporary:
        mode = stat.S_IMODE(temporary.stat().st_mode)
        try:
            save_file(arrays, str(temporary), dict(metadata or {}))
        except SafetensorError as error:  # a full disk, above all
            raise FormatError(f"{path}: cannot be written ({error}); choose another place or make room.") from error
        temporary.chmod(mode)  # the library's file is its owner's alone


@dataclass(frozen=True)
class DeferredArray:
    """An array of known shape and dtype that is made when it is written, and not held."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    load: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """The bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


Arrays = Mapping[str, np.ndarray | DeferredArray]


def save_sharded(
    directory: str | Path,
    tensors: Iterable[tuple[str, np.ndarray | DeferredArray]],
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a model's tensors as they come: one file, or shards of at most `max_shard_bytes` with an index.

    At most one shard is held in memory, of deferred arrays one at a time. `directory` exists; use atomic_files around
    this for the whole.
    """
    directory = Path(directory)
    shards: list[list[str]] = []
    held: dict[str, np.ndarray | DeferredArray] = {}
    held_bytes = total = 0

    def flush() -> None:
        nonlocal held_bytes
        _write_shard(directory / f"shard-{len(shards)}.safetensors", held)
        shards.append(list(held))
        held.clear()
        held_bytes = 0

    for name, array in tensors:
        if held and held_bytes + array.nbytes > max_shard_bytes:
            flush()
        held[name] = array
        held_bytes += array.nbytes
        total += array.nbytes
    flush()
    if len(shards) == 1:
        (directory / "shard-0.safetensors").rename(directory / SINGLE_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (directory / f"shard-{number}.safetensors").rename(directory / file)
        weight_map |= dict.fromkeys(names, file)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
    with atomic_file(directory / INDEX_FILE) as temporary:
        temporary.write_text(text + "\n")


def _write_shard(path: Path, arrays: Arrays) -> None:
    """One file, its tensors in the order of `arrays`; each is made when it is its turn."""
    import ml_dtypes

    names = {type_: name for name, type_ in NUMPY_TYPES.items()} | {np.dtype(ml_dtypes.bfloat16): "BF16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned
    with atomic_file(path) as part, part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, array in arrays.items():
            made = array.load() if isinstance(array, DeferredArray) else array
            if (made.shape, made.dtype) != (array.shape, array.dtype):
                raise FormatError(
                    f"{path}: the tensor {name} came as {made.dtype} of shape {made.shape}, expected {array.dtype} of "
                    f"shape {array.shape}."
                )
            file.write(np.ascontiguousarray(made).reshape(-1).view(np.uint8).data)
