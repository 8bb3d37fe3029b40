"""safetensors: the same values as the library's, a row at a time, in shards, and no file that lies is believed."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from entrenar.errors import FormatError
from entrenar.io import safetensors
from entrenar.io.safetensors import (
    INDEX_FILE,
    SINGLE_FILE,
    DeferredArray,
    open_safetensors,
    open_safetensors_directory,
    save_safetensors,
    save_sharded,
)

TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def values(kind: str, shape: tuple[int, ...] = (7, 5)) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal(shape) * 50
    return (x > 0) if kind == "BOOL" else np.abs(x).astype(np.uint8) if kind == "U8" else x.astype(TYPES[kind])


def header_file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    """A file with this header, JSON or bytes, and its length as told."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


# ---------------------------------------------------------------------- reading
@pytest.mark.unit
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_reads_as_float32(kind: str, tmp_path: Path) -> None:
    expected = values(kind)
    save_file({"other": np.ones(3, np.int8), "x": expected}, tmp_path / "x.safetensors")
    tensor = open_safetensors(tmp_path / "x.safetensors")["x"]
    assert (tensor.name, tensor.shape, tensor.type) == ("x", (7, 5), kind)
    loaded = tensor.load()
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, expected.astype(np.float32))
    np.testing.assert_array_equal(tensor.load_rows(2, 4), expected[2:4].astype(np.float32))
    assert tensor.raw().tobytes() == tensor.read().tobytes() == expected.tobytes()
    assert not tensor.raw().flags.writeable and tensor.read().flags.writeable
    assert np.shares_memory(tensor.raw(), tensor.raw())  # mapped, not read


@pytest.mark.chaos
def test_what_was_opened_is_read_whatever_happens_to_its_name(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": np.ones((70, 50), np.float32)}, path)
    tensor = open_safetensors(path)["x"]
    save_file({"x": np.zeros((3, 5), np.float32)}, tmp_path / "other")
    (tmp_path / "other").rename(path)
    assert (tensor.load() == 1).all()
    assert (tensor.raw().view(np.float32) == 1).all()
    path.unlink()
    assert (tensor.load_rows(60, 70) == 1).all()


@pytest.mark.chaos
def test_a_file_cut_off_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": np.ones((70, 50), np.float32)}, path)
    tensor = open_safetensors(path)["x"]
    os.truncate(path, 10_000)
    assert (tensor.load_rows(0, 5) == 1).all()
    for read in (tensor.load, tensor.raw):
        with pytest.raises(FormatError, match=r"x\.safetensors: has 10000 bytes, expected 14\d+ or more; .* fetch it"):
            read()


@pytest.mark.peers
def test_values_are_those_of_the_torch_library(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(9, 4, generator=generator) * 1e3
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8)
    tensors = {str(dtype): x.to(dtype) for dtype in dtypes}
    save_torch(tensors, tmp_path / "x.safetensors")
    opened = open_safetensors(tmp_path / "x.safetensors")
    assert set(opened) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(opened[name].load(), tensor.float().numpy(), err_msg=name)


@pytest.mark.unit
def test_scalars_and_empty_tensors_read(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {"scalar": (), "no rows": (0, 3), "no columns": (3, 0), "cube": (2, 3, 4)}
    tensors = {name: values("F32", shape).astype(np.float32) for name, shape in shapes.items()}
    save_file({name: np.asarray(tensor) for name, tensor in tensors.items()}, tmp_path / "x.safetensors")
    for name, tensor in open_safetensors(tmp_path / "x.safetensors").items():
        assert tensor.shape == shapes[name]
        np.testing.assert_array_equal(tensor.load(), tensors[name])


@pytest.mark.unit
def test_a_type_without_a_meaning_is_named(tmp_path: Path) -> None:
    header = {"x": {"dtype": "F8_E8M0", "shape": [2], "data_offsets": [0, 2]}}
    tensor = open_safetensors(header_file(tmp_path / "x.safetensors", header, b"ab"))["x"]
    with pytest.raises(FormatError, match=r"x\.safetensors: the tensor x has type F8_E8M0; expected F32, F16 or BF16"):
        tensor.load()


@pytest.mark.memory
@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_reading_one_row_does_not_load_the_file(kind: str, tmp_path: Path) -> None:
    rows, columns = 16384, 1024
    size = rows * columns * np.dtype(TYPES[kind]).itemsize
    header = {"x": {"dtype": kind, "shape": [rows, columns], "data_offsets": [0, size]}}
    path = header_file(tmp_path / "x.safetensors", header)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)
    open_safetensors(path)["x"].load_rows(0, 1)  # what is imported on first use is no weight
    before = psutil.Process().memory_info().rss
    tracemalloc.start()
    try:
        tensor = open_safetensors(path)["x"]
        for row in range(0, rows, rows // 8):
            assert not tensor.load_rows(row, row + 1).any()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    grown = psutil.Process().memory_info().rss - before
    assert peak < 200_000
    assert grown < size / 8
    assert tensor.load().nbytes == 4 * rows * columns


# ---------------------------------------------------------------------- writing
@pytest.mark.unit
def test_what_is_saved_the_library_reads(tmp_path: Path) -> None:
    tensors = {kind: values(kind) for kind in TYPES}
    tensors["scalar"] = np.array(2.5, np.float32)
    tensors["columns first"] = np.asfortranarray(values("F32"))
    tensors["every other"] = values("F32")[::2]
    save_safetensors(tmp_path / "x.safetensors", tensors, {"format": "pt"})
    loaded = load_file(tmp_path / "x.safetensors")
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert (loaded[name].shape, loaded[name].dtype) == (tensor.shape, tensor.dtype), name
        assert loaded[name].tobytes() == tensor.tobytes(), name
    opened = open_safetensors(tmp_path / "x.safetensors")
    assert opened["scalar"].shape == ()
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.chaos
def test_an_interrupted_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_safetensors(path, {"x": values("F32")})
    before = path.read_bytes()
    with pytest.raises(Exception, match=r"(?i)complex128|dtype"):
        save_safetensors(path, {"x": np.zeros(3, np.complex128)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.unit
@pytest.mark.parametrize(("limit", "shards"), [(10**9, 1), (400, 3), (1, 5)])
def test_shards_are_within_the_limit_and_read_back_in_order(limit: int, shards: int, tmp_path: Path) -> None:
    tensors = {f"layer.{i}": values("F32", (10, 5)) + i for i in range(5)}  # 200 bytes each
    save_sharded(tmp_path, tensors.items(), limit)
    names = sorted(path.name for path in tmp_path.iterdir())
    if shards == 1:
        assert names == [SINGLE_FILE]
    else:
        files = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
        assert names == sorted([*files, INDEX_FILE])
        index = json.loads((tmp_path / INDEX_FILE).read_text())
        assert index["metadata"]["total_size"] == 1000
        for file in files:
            held = load_file(tmp_path / file)
            assert set(held) == {name for name, place in index["weight_map"].items() if place == file}
            assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= limit
    opened = open_safetensors_directory(tmp_path)
    assert set(opened) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(opened[name].load(), tensor)


@pytest.mark.memory
def test_writing_shards_holds_one_shard(tmp_path: Path) -> None:
    size = 1 << 20

    def tensors() -> Any:
        for i in range(24):
            yield f"layer.{i}", np.full(size // 4, i, np.float32)

    save_sharded(tmp_path / ".", [("first", np.zeros(1, np.float32))])  # imports
    tracemalloc.start()
    try:
        save_sharded(tmp_path, tensors(), 2 * size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * size
    assert len(list(tmp_path.glob("model-*-of-00012.safetensors"))) == 12


@pytest.mark.memory
def test_deferred_arrays_are_held_one_at_a_time(tmp_path: Path) -> None:
    size = 1 << 20
    tensors = [
        (f"layer.{i}", DeferredArray((size // 4,), np.dtype(np.float32), lambda i=i: np.full(size // 4, i, np.float32)))
        for i in range(24)
    ]
    save_sharded(tmp_path / ".", [("first", np.zeros(1, np.float32))])  # imports
    tracemalloc.start()
    try:
        save_sharded(tmp_path, tensors)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * size
    held = load_file(tmp_path / SINGLE_FILE)
    assert set(held) == {name for name, _ in tensors}
    assert all((held[name] == int(name.split(".")[1])).all() for name in held)


@pytest.mark.unit
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_written_to_shards(kind: str, tmp_path: Path) -> None:
    arrays = {"a": values(kind), "empty": values(kind, (0, 3)), "scalar": values(kind, ()), "ü": values(kind, (3,))}
    save_sharded(tmp_path, arrays.items())
    held = load_file(tmp_path / SINGLE_FILE)
    for name, array in arrays.items():
        assert held[name].dtype == array.dtype and held[name].shape == array.shape
        assert held[name].tobytes() == array.tobytes()


@pytest.mark.chaos
def test_a_deferred_array_of_another_shape_is_refused(tmp_path: Path) -> None:
    wrong = DeferredArray((3,), np.dtype(np.float32), lambda: np.zeros(4, np.float32))
    with pytest.raises(FormatError, match=r"the tensor a came as float32 of shape \(4,\), expected float32 of shape"):
        save_sharded(tmp_path, [("a", wrong)])
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- bad input
@pytest.mark.chaos
def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    save_file({"a": values("F32"), "b": values("F16"), "c": values("BF16")}, path)
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(
            FormatError, match=r"cut\.safetensors: is truncated, damaged or no safetensors file \("
        ) as caught:
            open_safetensors(path)
        assert "\n" not in str(caught.value), size


def entry(shape: list[Any], offsets: list[Any], dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


LIES: dict[str, tuple[Any, bytes, int | None]] = {
    "a header beyond the file": ({"x": entry([1], [0, 4])}, bytes(4), 10**6),
    "a header of 2^63 bytes": ({"x": entry([1], [0, 4])}, bytes(4), 2**63),
    "a header of 2^64 - 1 bytes": ({"x": entry([1], [0, 4])}, bytes(4), 2**64 - 1),
    "no JSON": (b"not a header at all", b"", None),
    "a pickle": (b"\x80\x04\x95\x0e\0\0\0\0\0\0\0\x8c\x05posix", b"", None),
    "a list": ([1, 2], b"", None),
    "nested without end": (b'{"x":' + b"[" * 50_000, b"", None),
    "text that is no UTF-8": (b'{"\xff\xfe": 1}', b"", None),
    "offsets beyond the file": ({"x": entry([4], [0, 16])}, bytes(8), None),
    "offsets that go back": ({"x": entry([1], [4, 0])}, bytes(4), None),
    "offsets below zero": ({"x": entry([1], [-4, 0])}, bytes(4), None),
    "offsets of 2^64": ({"x": entry([1], [0, 2**64])}, bytes(4), None),
    "overlapping tensors": ({"x": entry([2], [0, 8]), "y": entry([2], [4, 12])}, bytes(12), None),
    "a hole between tensors": ({"x": entry([1], [0, 4]), "y": entry([1], [8, 12])}, bytes(12), None),
    "more bytes than the shape": ({"x": entry([1], [0, 8])}, bytes(8), None),
    "fewer bytes than the shape": ({"x": entry([9], [0, 8])}, bytes(8), None),
    "a shape that wraps around": ({"x": entry([2**32, 2**32], [0, 0])}, b"", None),
    "a shape below zero": ({"x": entry([-1], [0, 4])}, bytes(4), None),
    "an unknown type": ({"x": entry([1], [0, 4], "Q4_K")}, bytes(4), None),
    "a type that is a number": ({"x": entry([1], [0, 4], 7)}, bytes(4), None),
    "no offsets": ({"x": {"dtype": "F32", "shape": [1]}}, bytes(4), None),
    "bytes after the data": ({"x": entry([1], [0, 4])}, bytes(9), None),
}


@pytest.mark.chaos
@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(lie: str, tmp_path: Path) -> None:
    header, data, length = LIES[lie]
    path = header_file(tmp_path / "lie.safetensors", header, data, length)
    with pytest.raises(
        FormatError, match=r"lie\.safetensors: is truncated, damaged or no safetensors file \(.+\); fetch"
    ):
        open_safetensors(path)


@pytest.mark.chaos
def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"none\.safetensors: no such file; expected safetensors weights\."):
        open_safetensors(tmp_path / "none.safetensors")
    with pytest.raises(FormatError, match=r": is a directory, expected a file of safetensors weights\."):
        open_safetensors(tmp_path)


@pytest.mark.property
@pytest.mark.chaos
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_give_values_or_one_clear_sentence(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "damaged.safetensors"
    save_file({"a": values("F32"), "b": values("I8"), "c": values("BF16")}, path, {"format": "pt"})
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    alphabet = [0, 255, *b'0159{}[]",:-. FIBQ']
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.sampled_from(alphabet))
    path.write_bytes(bytes(content))
    try:
        for tensor in open_safetensors(path).values():
            tensor.load()
    except FormatError as error:
        assert str(error).startswith(f"{path}: ")


def shard(directory: Path, name: str = "a.safetensors") -> None:
    save_file({"x": values("F32")}, directory / name)


INDEX_LIES: dict[str, tuple[str, str]] = {
    "no JSON": ("{", r"index\.json: is not JSON"),
    "nested without end": ("[" * 100_000, r"index\.json: is not JSON"),
    "a list": ("[]", r"index\.json: holds a list, expected an object"),
    "no map": ("{}", r"index\.json: has no weight_map; expected the shard of every tensor"),
    "a map that is none": ('{"weight_map": [1]}', r"index\.json: has no weight_map"),
    "an empty map": ('{"weight_map": {}}', r"index\.json: has no weight_map"),
    "a shard above the folder": (
        '{"weight_map": {"x": "../a.safetensors"}}',
        r"index\.json: names the shard '\.\./a\.safetensors', expected a file in the same folder",
    ),
    "an absolute shard": ('{"weight_map": {"x": "/etc/passwd"}}', r"names the shard '/etc/passwd', expected a file"),
    "the folder above": ('{"weight_map": {"x": ".."}}', r"is a directory, expected a file"),
    "a shard that is a number": ('{"weight_map": {"x": 5}}', r"names the shard 5, expected a file in the same folder"),
    "a shard with a null byte": ('{"weight_map": {"x": "a\\u0000b"}}', r"no such file"),
    "a shard of a name that no file has": (
        json.dumps({"weight_map": {"x": "b" * 300}}),
        r"expected a file in the same",
    ),
    "a shard that is missing": (
        '{"weight_map": {"x": "b.safetensors"}}',
        r"b\.safetensors: no such file; .*index\.json names it as a shard",
    ),
    "a tensor that is missing": (
        '{"weight_map": {"x": "a.safetensors", "y": "a.safetensors"}}',
        r"index\.json: promises the tensor y, which none of its shards holds",
    ),
}


@pytest.mark.chaos
@pytest.mark.parametrize("lie", INDEX_LIES)
def test_an_index_that_lies_is_refused(lie: str, tmp_path: Path) -> None:
    text, message = INDEX_LIES[lie]
    directory = tmp_path / "model"
    directory.mkdir()
    shard(directory)
    shard(tmp_path)  # within reach of one that escapes
    (directory / INDEX_FILE).write_text(text)
    with pytest.raises(FormatError, match=message):
        open_safetensors_directory(directory)


@pytest.mark.chaos
def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FormatError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json; expected"
    ):
        open_safetensors_directory(tmp_path)


@pytest.mark.chaos
def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    save_sharded(tmp_path, {f"layer.{i}": values("F32") for i in range(3)}.items(), 1)
    victim = tmp_path / "model-00002-of-00003.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"model-00002-of-00003\.safetensors: is truncated"):
        open_safetensors_directory(tmp_path)


@pytest.mark.chaos
def test_an_interrupted_sharded_save_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = safetensors._write_shard, []

    def second_fails(path: Path, *arguments: Any) -> None:
        calls.append(path)
        if len(calls) == 2:
            raise OSError("disk full")
        real(path, *arguments)

    monkeypatch.setattr(safetensors, "_write_shard", second_fails)
    with pytest.raises(OSError, match="disk full"):
        save_sharded(tmp_path, {f"layer.{i}": values("F32") for i in range(3)}.items(), 1)
    with pytest.raises(FormatError, match="has neither"):
        open_safetensors_directory(tmp_path)


@pytest.mark.unit
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_permissions_are_what_the_umask_leaves(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        save_safetensors(tmp_path / "x.safetensors", {"a": np.zeros(3, np.float32)})
    finally:
        os.umask(before)
    assert (tmp_path / "x.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask
