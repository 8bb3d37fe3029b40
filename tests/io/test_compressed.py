"""Arrays compressed without loss: the same bits, a smaller safetensors file, and one sentence for what is damaged."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from entrenar.errors import ConfigError, EntrenarError, FormatError
from entrenar.io import compressed
from entrenar.io.compressed import check_zstd, open_maybe_compressed, save_compressed
from entrenar.io.safetensors import save_safetensors

pytest.importorskip("zstandard")
RNG = np.random.default_rng(4)
ODD = np.array([0.0, -0.0, np.nan, -np.inf, 1e-45, 3.4e38, np.uint32(0x7FA00001).view(np.float32)], np.float32)
ARRAYS: dict[str, np.ndarray] = {
    "matrix": (RNG.standard_normal((300, 70)) * 0.02).astype(np.float32),
    "transposed": (RNG.standard_normal((40, 30))).astype(np.float32).T,
    "odd numbers": ODD,
    "scalar": np.float32(2.5).reshape(()),
    "empty": np.empty((3, 0), np.float32),
    "one": np.ones(1, np.float32),
    'name with "quotes" and ü': np.zeros((64, 64), np.float32),
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    save_compressed(tmp_path / "a.safetensors", ARRAYS, "an option")
    return tmp_path / "a.safetensors"


@pytest.mark.unit
def test_every_bit_comes_back(written: Path) -> None:
    found = open_maybe_compressed(written)
    assert list(found) and set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        loaded = found[name].load()
        assert loaded.shape == found[name].shape == array.shape
        assert loaded.tobytes() == np.ascontiguousarray(array).tobytes()


@pytest.mark.unit
@pytest.mark.parametrize("size", [99, 100, 101, 350])
def test_arrays_of_several_frames(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "BLOCK", 100)
    array = RNG.standard_normal(size).astype(np.float32)
    save_compressed(tmp_path / "a.safetensors", {"a": array}, "an option")
    assert (open_maybe_compressed(tmp_path / "a.safetensors")["a"].load() == array).all()


@pytest.mark.unit
def test_any_program_opens_the_file_and_zstd_the_frames(written: Path) -> None:
    import zstandard

    with safe_open(written, framework="numpy") as file:
        assert file.metadata()["compression"] == "zstd-byteshuffle"
        assert json.loads(file.metadata()["shapes"])["matrix"] == [300, 70]
        stored = file.get_tensor("matrix")
    assert stored.dtype == np.uint8
    planes = np.frombuffer(zstandard.ZstdDecompressor().decompress(stored.tobytes()), np.uint8).reshape(4, -1)
    assert (planes.T.copy().view(np.float32).reshape(300, 70) == ARRAYS["matrix"]).all()


@pytest.mark.unit
def test_it_is_smaller_and_the_shuffle_counts(tmp_path: Path) -> None:
    import zstandard

    weights = (RNG.standard_normal(1 << 18) * 0.02).astype(np.float32)
    save_compressed(tmp_path / "a.safetensors", {"a": weights}, "an option")
    size = (tmp_path / "a.safetensors").stat().st_size
    plain = len(zstandard.ZstdCompressor(level=compressed.LEVEL).compress(weights.tobytes()))
    assert size < 0.87 * weights.nbytes and size < 0.95 * plain


@pytest.mark.unit
def test_what_is_not_compressed_is_read_too(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "a.safetensors", {"a": ARRAYS["matrix"]})
    assert (open_maybe_compressed(tmp_path / "a.safetensors")["a"].load() == ARRAYS["matrix"]).all()


# ---------------------------------------------------------------------- damaged ones
@pytest.mark.chaos
def test_a_cut_or_changed_file_is_one_sentence(written: Path) -> None:
    content, refused = written.read_bytes(), 0
    for _ in range(150):
        changed = bytearray(content)
        at = int(RNG.integers(len(content)))
        if RNG.random() < 0.3:
            del changed[at:]
        else:
            changed[at] ^= 1 << int(RNG.integers(8))
        written.write_bytes(changed)
        try:
            for tensor in open_maybe_compressed(written).values():
                tensor.load()
        except EntrenarError as error:
            refused += 1
            assert "\n" not in str(error) and str(written) in str(error)
    assert refused > 120  # frames have checksums; a changed name or space of the header may pass


def rewritten(path: Path, change: Any) -> None:
    """The header changed, with the data as they are."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


@pytest.mark.unit
@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"a": [4]}, "damaged or cut off .*more than its shape holds"),
        ({"a": [6]}, r"damaged or cut off .*it ends 4 bytes early"),
        ({"a": [1 << 62]}, "has shape"),
        ({"a": [1 << 30, 1 << 30]}, "has shape"),
        ({"a": [1 << 45]}, "damaged or cut off"),
        ({"a": [-5]}, "has shape"),
        ({"a": 5}, "has shape 5"),
        ({"b": [5]}, "has no shapes of its 1 arrays"),
        ([], "has no shapes"),
    ],
)
def test_shapes_that_are_not_what_is_there_are_refused(shapes: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_compressed(path, {"a": np.arange(5, dtype=np.float32)}, "an option")
    rewritten(path, lambda header: header["__metadata__"].update(shapes=json.dumps(shapes)))
    with pytest.raises(FormatError, match=said):
        open_maybe_compressed(path)["a"].load()


@pytest.mark.unit
def test_another_compression_is_refused(written: Path) -> None:
    rewritten(written, lambda header: header["__metadata__"].update(compression="lz4"))
    with pytest.raises(FormatError, match=r"is compressed by 'lz4', expected zstd-byteshuffle"):
        open_maybe_compressed(written)


# ---------------------------------------------------------------------- the library
@pytest.mark.unit
def test_a_library_that_is_missing_or_another_is_one_sentence(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_zstd("checkpointing.compression")
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(ConfigError, match=r"compression needs zstandard, .* pip install 'entrenar\[zstd\]'"):
        check_zstd("checkpointing.compression")
    with pytest.raises(ConfigError, match=r"a\.safetensors: is compressed and needs zstandard, which cannot be imp"):
        open_maybe_compressed(written)["one"].load()
    monkeypatch.setitem(sys.modules, "zstandard", SimpleNamespace(compress=bytes))
    with pytest.raises(ConfigError, match="what has this name here does not work"):
        check_zstd("checkpointing.compression")
    same = SimpleNamespace(compress=lambda said: said, decompress=lambda said: said[1:])
    other = SimpleNamespace(ZstdCompressor=lambda level: same, ZstdDecompressor=lambda: same)
    monkeypatch.setitem(sys.modules, "zstandard", other)
    with pytest.raises(ConfigError, match="gives other bytes back"):
        check_zstd("checkpointing.compression")
