"""Large arrays in a GGUF file's metadata are read quickly and into little memory."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import pytest

from entrenar.errors import FormatError
from entrenar.io.gguf import GGUFFile

U8, U32, F32, STRING, ARRAY = 0, 4, 6, 8, 9


def write(path: Path, kind: int, count: int, data: bytes) -> Path:
    """A file with one array, its entries as stored, and no tensor."""
    key = b"general.tags"
    head = struct.pack("<IIQQ", 0x46554747, 3, 0, 1) + struct.pack("<Q", len(key)) + key
    path.write_bytes(head + struct.pack("<IIQ", ARRAY, kind, count) + data)
    return path


def read(path: Path) -> tuple[Any, float, int]:
    """(the array, seconds, bytes at the peak), the time without the meter of memory."""
    start = time.process_time()
    GGUFFile(path)
    seconds = time.process_time() - start
    tracemalloc.start()
    try:
        found = GGUFFile(path).metadata["general.tags"]
        return found, seconds, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


ARRAYS = {
    "4 MB of bytes": (U8, 4_000_000, bytes(range(250)) * 16_000),
    "1 M integers": (U32, 1_000_000, struct.pack("<I", 70_000) * 1_000_000),
    "1 M scores": (F32, 1_000_000, struct.pack("<f", -0.5) * 1_000_000),
    "500,000 empty texts": (STRING, 500_000, bytes(8) * 500_000),
    "a vocabulary of 128,000": (STRING, 128_000, (struct.pack("<Q", 7) + "Ġtoken".encode()) * 128_000),
}


@pytest.mark.chaos
@pytest.mark.parametrize("name", ARRAYS)
def test_a_large_array_takes_a_second_and_some_megabytes(name: str, tmp_path: Path) -> None:
    kind, count, data = ARRAYS[name]
    found, seconds, peak = read(write(tmp_path / "x.gguf", kind, count, data))
    assert len(found) == count
    assert seconds < 3  # 0.05 to 0.3 s where nothing else runs
    assert peak < 100 << 20
    expected = {U8: 249, U32: 70_000, F32: -0.5, STRING: "" if "empty" in name else "Ġtoken"}
    assert found[-1] == expected[kind]


@pytest.mark.chaos
def test_more_entries_than_any_model_has_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", U8, 5_000_000, bytes(5_000_000))
    with pytest.raises(FormatError, match=r"'general\.tags' is an array of 5000000 entries, which brings all arrays"):
        GGUFFile(path)
    path = write(tmp_path / "x.gguf", STRING, 10, struct.pack("<Q", 3) + b"a\xffb" + bytes(100))
    with pytest.raises(FormatError, match=r"'general\.tags' holds a text that is no UTF-8 \(entry 0\)"):
        GGUFFile(path)


@pytest.mark.chaos
def test_an_array_of_arrays_is_refused_by_its_key(tmp_path: Path) -> None:
    pair = struct.pack("<IQ", STRING, 2) + (struct.pack("<Q", 1) + b"a") * 2
    path = write(tmp_path / "x.gguf", ARRAY, 1, pair)
    with pytest.raises(FormatError, match=r"'general\.tags' is an array of the type 9, expected numbers or texts"):
        GGUFFile(path)


@pytest.mark.unit
def test_merges_stay_in_the_file_and_are_the_texts_of_a_list(tmp_path: Path) -> None:
    merges = ["a b", "Ġ t", "é è", ""]
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_array("tokenizer.ggml.merges", merges)
    writer.add_uint32("after", 7)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    metadata = GGUFFile(tmp_path / "m.gguf").metadata
    found = metadata["tokenizer.ggml.merges"]
    assert not isinstance(found, list) and found == merges and list(found) == merges and found == found
    assert (len(found), found[1], found[1:3], metadata["after"]) == (4, "Ġ t", merges[1:3], 7)
