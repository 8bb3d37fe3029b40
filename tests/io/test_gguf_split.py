"""GGUF models in several files: any part stands for the whole, or one sentence says what is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from entrenar.errors import FormatError
from entrenar.io.gguf import GGUFFile

X = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)


def write_part(path: Path, names: str, values: dict[str, Any], metadata: bool = False) -> None:
    """A part with the tensors of these one-letter names; `values` are the split.* keys."""
    writer = gguf.GGUFWriter(path, "llama")
    if metadata:
        writer.add_string("general.name", "whole")
    for key, value in values.items():
        if key == "split.tensors.count":
            writer.add_int32(key, value)
        else:
            writer.add_uint16(key, value)
    for name in names:
        writer.add_tensor(name, X * (1 + ord(name)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def keys(number: int, count: int, tensors: int) -> dict[str, int]:
    return {"split.no": number, "split.count": count, "split.tensors.count": tensors}


def parts(folder: Path, *names: str, count: int | None = None) -> list[Path]:
    total = sum(map(len, names))
    paths = []
    for number, part in enumerate(names):
        paths.append(folder / f"m-{number + 1:05d}-of-{len(names):05d}.gguf")
        write_part(paths[-1], part, keys(number, len(names), total if count is None else count), metadata=not number)
    return paths


@pytest.mark.unit
@pytest.mark.parametrize("given", [0, 1, 2])
def test_any_part_gives_the_tensors_of_all_parts(given: int, tmp_path: Path) -> None:
    paths = parts(tmp_path, "ab", "c", "de")
    file = GGUFFile(paths[given])
    assert file.paths == paths
    assert file.metadata["general.name"] == "whole"
    assert list(file.tensors) == list("abcde")
    for name, tensor in file.tensors.items():
        np.testing.assert_array_equal(tensor.load(), X * (1 + ord(name)))


@pytest.mark.unit
def test_a_count_of_one_is_a_whole_file(tmp_path: Path) -> None:
    write_part(tmp_path / "any.gguf", "a", keys(0, 1, 1))
    assert list(GGUFFile(tmp_path / "any.gguf").tensors) == ["a"]


@pytest.mark.chaos
def test_what_is_missing_is_named(tmp_path: Path) -> None:
    first, second, third = parts(tmp_path, "a", "b", "c")
    third.unlink()
    with pytest.raises(FormatError, match=r"m-00001-of-00003\.gguf: is part 1 of 3: part 3 is missing; put all parts"):
        GGUFFile(first)
    with pytest.raises(FormatError, match=r"m-00002-of-00003\.gguf: is part 2 of 3: part 3 is missing; put all parts"):
        GGUFFile(second)
    second.unlink()
    with pytest.raises(FormatError, match=r"is part 1 of 3: parts 2, 3 are missing"):
        GGUFFile(first)
    first.rename(tmp_path / "model.gguf")
    with pytest.raises(FormatError, match=r"model\.gguf: is part 1 of 3, .* name that ends in '-00001-of-00003\.gguf'"):
        GGUFFile(tmp_path / "model.gguf")


@pytest.mark.chaos
def test_parts_of_different_models_are_refused(tmp_path: Path) -> None:
    first, second = parts(tmp_path, "a", "b")
    write_part(second, "a", keys(1, 2, 2))
    with pytest.raises(FormatError, match=r"m-00002-of-00002\.gguf: the tensor a is in another part too"):
        GGUFFile(first)
    write_part(second, "b", keys(2, 3, 2))
    with pytest.raises(
        FormatError, match=r"00002\.gguf: has split\.no 2 and split\.count 3, expected 1 and 2 by its name"
    ):
        GGUFFile(first)
    write_part(second, "bc", keys(1, 2, 3))
    with pytest.raises(FormatError, match=r"its 2 parts have 3 tensors, expected the split\.tensors\.count of 2"):
        GGUFFile(first)
    second.write_bytes(second.read_bytes()[:-40])
    with pytest.raises(FormatError, match=r"m-00002-of-00002\.gguf: is truncated or damaged"):
        GGUFFile(first)
    write_part(second, "b", keys(2, 2, 2))
    with pytest.raises(FormatError, match=r"00002\.gguf: split\.no is 2, expected less than the split\.count of 2"):
        GGUFFile(second)
    second.unlink()
    first.rename(second)
    write_part(first, "b", keys(0, 2, 2))
    with pytest.raises(FormatError, match=r"00002\.gguf: is part 1 of 2, and .* a name that ends in '-00001-of-00002"):
        GGUFFile(second)
    with pytest.raises(FormatError, match=r"00002\.gguf: has split\.no 0 and split\.count 2, expected 1 and 2 by"):
        GGUFFile(first)


@pytest.mark.chaos
def test_a_missing_first_part_is_named(tmp_path: Path) -> None:
    first, second = parts(tmp_path, "a", "b")
    first.unlink()
    with pytest.raises(FormatError, match=r"m-00002-of-00002\.gguf: is part 2 of 2: part 1 is missing; put all parts"):
        GGUFFile(second)
