"""float32 arrays in a safetensors file, compressed by zstd without loss, the bytes of each number apart (byte shuffle).

A tensor of the file is U8 and has the frames of an array (RFC 8878), one for each 2^20 elements: first the lowest byte
of all of them, then the second of all, and so on, which puts what is alike side by side. The metadata have
"compression" "zstd-byteshuffle" and in "shapes" the shape of each array, as JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from entrenar.errors import ConfigError, EntrenarError, FormatError
from entrenar.io.atomic import atomic_file
from entrenar.io.json_file import parse_json
from entrenar.io.lazy import LazyTensor
from entrenar.io.safetensors import open_safetensors
from entrenar.observe.extras import needed

METHOD = "zstd-byteshuffle"
BLOCK = 1 << 20  # elements of a frame
LEVEL = 1  # of zstd: higher ones are slower, and no smaller on bytes of floats
LARGEST = 1 << 48  # bytes of an array that is read


def check_zstd(option: str) -> None:
    """ConfigError, naming the option that wants it, where the library is missing or does not work."""
    library, said = needed("zstandard", option, "zstd"), b"entrenar" * 9
    try:
        right = library.ZstdDecompressor().decompress(library.ZstdCompressor(level=LEVEL).compress(said)) == said
    except Exception as error:  # whatever a library of this name does
        raise ConfigError(
            f"{option} needs zstandard, and what has this name here does not work ({error!r})."
        ) from error
    if not right:
        raise ConfigError(f"{option} needs zstandard, and what has this name here gives other bytes back.")


def save_compressed(path: str | Path, arrays: Mapping[str, np.ndarray], option: str) -> None:
    """Write float32 arrays, atomically, with one block of them in memory at a time; raises as `check_zstd`."""
    library = needed("zstandard", option, "zstd")
    compressor = library.ZstdCompressor(level=LEVEL, write_content_size=True, write_checksum=True)
    shapes = json.dumps({name: list(array.shape) for name, array in arrays.items()})
    head: dict[str, Any] = {"__metadata__": {"compression": METHOD, "shapes": shapes}}
    most = sum(_bound(array.nbytes) for array in arrays.values())
    longest = _header(head | {name: _entry(most, 2 * most) for name in arrays}, 0)
    with atomic_file(path) as part, part.open("wb") as file:
        file.write(bytes(len(longest)))
        end = 0
        for name, array in arrays.items():
            start = end
            for block in _blocks(array):
                end += file.write(compressor.compress(block))
            head[name] = _entry(start, end)
        file.seek(0)
        file.write(_header(head, len(longest)))


def _bound(size: int) -> int:
    """The most that the frames of so many bytes take; zstd's own bound is 1/256 more, and 64 bytes for small ones."""
    return size + size // 256 + 128 * (size // (4 * BLOCK) + 1)


def _entry(start: int, end: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}


def _header(head: Mapping[str, Any], size: int) -> bytes:
    """The beginning of a safetensors file; with spaces behind it so that it has at least `size` bytes."""
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (max(size - 8, len(text) + -len(text) % 8) - len(text))
    return len(text).to_bytes(8, "little") + text


def _blocks(array: np.ndarray) -> Iterator[bytes]:
    flat = np.ascontiguousarray(array, np.float32).reshape(-1)
    for at in range(0, flat.size, BLOCK):
        yield flat[at : at + BLOCK].view(np.uint8).reshape(-1, 4).T.tobytes()


# ---------------------------------------------------------------------- reading
def open_maybe_compressed(path: str | Path) -> dict[str, LazyTensor]:
    """The arrays of a file that `save_compressed` or `save_safetensors` wrote; raises as `open_safetensors`.

    Loading a compressed one raises as `check_zstd` too.
    """
    metadata: dict[str, Any] = {}
    tensors = open_safetensors(path, metadata=metadata)
    if "compression" not in metadata:
        return tensors
    if metadata["compression"] != METHOD:
        raise FormatError(f"{path}: is compressed by {metadata['compression']!r:.80}, expected {METHOD}.")
    shapes = parse_json(str(metadata.get("shapes")).encode(), f"{path}: its shapes")
    if not isinstance(shapes, dict) or set(shapes) != set(tensors):
        raise FormatError(f"{path}: has no shapes of its {len(tensors)} arrays; it is damaged.")
    return {name: CompressedTensor(Path(path), tensor, shapes[name]) for name, tensor in tensors.items()}


class CompressedTensor(LazyTensor):
    """An array whose frames are the bytes of `stored`."""

    def __init__(self, path: Path, stored: LazyTensor, shape: Any) -> None:
        sizes: list[Any] = shape if isinstance(shape, list) else [None]
        if not all(type(size) is int and 0 <= size < LARGEST for size in sizes) or 4 * math.prod(sizes) > LARGEST:
            raise FormatError(f"{path}: its array {stored.name} has shape {shape!r:.80}; the file is damaged.")
        super().__init__(stored.name, tuple(sizes), "F32")
        self._path, self._stored = path, stored

    @property
    def nbytes(self) -> int:
        return self._stored.nbytes

    def raw(self) -> np.ndarray:
        return self._stored.raw()

    def read(self) -> np.ndarray:
        return self._stored.read()

    def load_rows(self, start: int, stop: int) -> np.ndarray:
        return self.load()[start:stop]

    def load(self) -> np.ndarray:
        """The whole array, to the bits that were written."""
        library = needed("zstandard", f"{self._path}: is compressed and", "zstd")
        try:
            out = np.empty(math.prod(self.shape), np.float32)
            frames = library.ZstdDecompressor().stream_reader(self._stored.read().data, read_across_frames=True)
            for at in range(0, out.size, BLOCK):
                part = out[at : at + BLOCK]
                planes = np.frombuffer(_exactly(frames, part.nbytes), np.uint8).reshape(4, part.size)
                part.view(np.uint8).reshape(part.size, 4)[...] = planes.T
            if frames.read(1):
                raise ValueError("more than its shape holds")
        except EntrenarError:
            raise
        except (library.ZstdError, ValueError, MemoryError) as error:
            raise FormatError(
                f"{self._path}: its array {self.name} is damaged or cut off ({error or type(error).__name__}); "
                f"expected {math.prod(self.shape)} compressed float32 numbers."
            ) from error
        return out.reshape(self.shape)


def _exactly(frames: Any, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        piece = frames.read(count - len(found))
        if not piece:
            raise ValueError(f"it ends {count - len(found)} bytes early")
        found += piece
    return bytes(found)
