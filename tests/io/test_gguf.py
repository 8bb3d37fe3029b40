"""GGUF files: what they mean by the gguf library, and every way in which a file can lie."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entrenar.errors import FormatError
from entrenar.io.gguf import GGUFFile

QUANTIZED = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "naïve ☃",
    "llama.block_count": 3,
    "llama.rope.freq_base": 1e5,
    "tokenizer.ggml.tokens": ["a", "ü", "", "<s>"],
    "tokenizer.ggml.scores": [0.0, -1.5, 2.0, -3.0],
    "tokenizer.ggml.token_type": [1, 1, 6, 3],
    "tokenizer.ggml.add_bos_token": True,
}


def values(rows: int = 6, columns: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def write(path: Path) -> dict[str, tuple[np.ndarray, str]]:
    """A file with metadata of every shape and tensors of several types; returns what the tensors mean."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", METADATA["general.name"])
    writer.add_uint32("llama.block_count", 3)
    writer.add_float32("llama.rope.freq_base", 1e5)
    writer.add_array("tokenizer.ggml.tokens", METADATA["tokenizer.ggml.tokens"])
    writer.add_array("tokenizer.ggml.scores", METADATA["tokenizer.ggml.scores"])
    writer.add_array("tokenizer.ggml.token_type", METADATA["tokenizer.ggml.token_type"])
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    x = values()
    tensors = {"norm": (x[0], "F32"), "matrix": (x, "F32"), "half": (x.astype(np.float16).astype(np.float32), "F16")}
    writer.add_tensor("norm", x[0].copy())
    writer.add_tensor("matrix", x)
    writer.add_tensor("half", x.astype(np.float16))
    for name in QUANTIZED:
        kind = gguf.GGMLQuantizationType[name]
        blocks = gguf.quants.quantize(x, kind)
        writer.add_tensor(name, blocks, raw_dtype=kind)
        tensors[name] = (gguf.quants.dequantize(blocks, kind), name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "sound.gguf"
    write(path)
    return path.read_bytes()


def opened(path: Path, content: bytes) -> GGUFFile:
    path.write_bytes(content)
    return GGUFFile(path)


@pytest.mark.unit
def test_metadata_are_plain_values(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf")
    file = GGUFFile(tmp_path / "x.gguf")
    assert {key: file.metadata[key] for key in METADATA} == METADATA
    assert set(file.metadata) == set(METADATA)
    assert {type(value) for value in file.metadata.values()} == {str, int, float, list, bool}


@pytest.mark.unit
def test_tensors_mean_what_the_library_dequantizes(tmp_path: Path) -> None:
    expected = write(tmp_path / "x.gguf")
    file = GGUFFile(tmp_path / "x.gguf")
    assert list(file.tensors) == list(expected)
    for name, (array, kind) in expected.items():
        tensor = file.tensors[name]
        assert (tensor.name, tensor.shape, tensor.type) == (name, array.shape, kind)
        loaded = tensor.load()
        assert loaded.dtype == np.float32
        np.testing.assert_array_equal(loaded, array, err_msg=name)
        np.testing.assert_array_equal(tensor.load_rows(2, 5), array[2:5], err_msg=name)
        assert tensor.load_rows(2, 2).shape == array[2:2].shape


@pytest.mark.unit
def test_raw_gives_the_stored_blocks_a_row_each(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf")
    file = GGUFFile(tmp_path / "x.gguf")
    for name in QUANTIZED:
        kind = gguf.GGMLQuantizationType[name]
        raw = file.tensors[name].raw()
        assert raw.dtype == np.uint8
        np.testing.assert_array_equal(raw, gguf.quants.quantize(values(), kind))


@pytest.mark.chaos
def test_a_file_cut_off_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf")
    file = GGUFFile(tmp_path / "x.gguf")
    os.truncate(tmp_path / "x.gguf", 1000)
    with pytest.raises(FormatError, match=r"x\.gguf: has 1000 bytes, expected \d+ or more; .* fetch it again"):
        file.tensors["Q8_0"].load()


@pytest.mark.unit
def test_read_is_raw_in_memory_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "x.gguf")
    for name in QUANTIZED:
        tensor = GGUFFile(tmp_path / "x.gguf").tensors[name]
        np.testing.assert_array_equal(tensor.read(), tensor.raw())
        assert not np.shares_memory(tensor.read(), tensor.raw())


@pytest.mark.unit
def test_a_type_that_the_library_cannot_dequantize_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("counts", np.arange(8, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = GGUFFile(tmp_path / "x.gguf").tensors["counts"]
    with pytest.raises(FormatError, match=r"x\.gguf: the tensor counts has type I32, which the gguf library cannot"):
        tensor.load()


@pytest.mark.chaos
def test_a_file_cut_anywhere_is_refused(sound: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    opened(path, sound)
    data_start = sound.index(values()[0].tobytes())
    last = sound.rindex(gguf.quants.quantize(values(), gguf.GGMLQuantizationType.Q8_0).tobytes()[-8:]) + 8
    offsets = [*range(data_start), *range(data_start, last, 97), last - 1]
    for size in offsets:
        with pytest.raises(
            FormatError, match=r"cut\.gguf: (is truncated|is empty|begins with the bytes|names \d+ tensors)"
        ) as caught:
            opened(path, sound[:size])
        assert "\n" not in str(caught.value), size
    opened(path, sound[:last])  # the padding of the last tensor may be missing


def patched(content: bytes, at: int, replacement: bytes) -> bytes:
    return content[:at] + replacement + content[at + len(replacement) :]


def length_before(content: bytes, text: str) -> int:
    """Where the length of this string stands."""
    return content.index(struct.pack("<Q", len(text)) + text.encode())


def after(content: bytes, text: str) -> int:
    return length_before(content, text) + 8 + len(text)


u32, u64 = struct.Struct("<I").pack, struct.Struct("<Q").pack
BIG = 2**63
LIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "magic": (
        lambda b: patched(b, 0, b"GGML"),
        r"begins with the bytes 47 47 4d 4c, expected 47 47 55 46 \(GGUF\); it is not a GGUF file",
    ),
    "zip": (lambda b: b"PK\3\4" + b, "it is not a GGUF file"),
    "empty": (lambda b: b"", "is empty, expected a GGUF file; fetch it again"),
    "version 0": (lambda b: patched(b, 4, u32(0)), r"is GGUF version 0, expected 2 or 3"),
    "version 1": (lambda b: patched(b, 4, u32(1)), "is GGUF version 1"),
    "version 4": (lambda b: patched(b, 4, u32(4)), "is GGUF version 4"),
    "big-endian": (
        lambda b: patched(b, 4, b"\0\0\0\3"),
        r"is a big-endian GGUF file, expected a little-endian one; .*gguf-convert-endian",
    ),
    "tensor count": (lambda b: patched(b, 8, u64(BIG)), "names 9223372036854775808 tensors and 8 metadata entries"),
    "field count": (lambda b: patched(b, 16, u64(2**64 - 1)), "names 8 tensors and 18446744073709551615 metadata"),
    "one tensor more": (lambda b: patched(b, 8, u64(9)), "is truncated or damaged: "),
    "one field more": (lambda b: patched(b, 16, u64(9)), "is truncated or damaged: "),
    "length of a key": (
        lambda b: patched(b, length_before(b, "general.name"), u64(BIG)),
        r"is truncated or damaged: metadata entry \d+ needs 9223372036854775808 bytes where \d+ are left",
    ),
    "length of a text": (
        lambda b: patched(b, after(b, "general.name") + 4, u64(2**40)),
        r"the metadata key 'general\.name' needs 1099511627776 bytes where \d+ are left",
    ),
    "length of a token": (
        lambda b: patched(b, after(b, "tokenizer.ggml.tokens") + 16, u64(2**64 - 1)),
        r"the metadata key 'tokenizer\.ggml\.tokens' needs 18446744073709551615 bytes",
    ),
    "an array longer than the file": (
        lambda b: patched(b, after(b, "tokenizer.ggml.scores") + 8, u64(1_000_000)),
        r"the metadata key 'tokenizer\.ggml\.scores' needs 4000000 bytes",
    ),
    "an array without end": (
        lambda b: patched(b, after(b, "tokenizer.ggml.scores") + 8, u64(5_000_000)),
        r"'tokenizer\.ggml\.scores' is an array of 5000000 entries, which brings all arrays beyond 4194304",
    ),
    "texts without end": (
        lambda b: patched(b, after(b, "tokenizer.ggml.tokens") + 8, u64(4_000_000)),
        r"the metadata key 'tokenizer\.ggml\.tokens' needs ",
    ),
    "an array of arrays": (
        lambda b: patched(b, after(b, "tokenizer.ggml.scores") + 4, u32(9)),
        r"'tokenizer\.ggml\.scores' is an array of the type 9, expected numbers or texts",
    ),
    "type of a value": (
        lambda b: patched(b, after(b, "llama.block_count"), u32(77)),
        r"the metadata key 'llama\.block_count' has the type 77, which no GGUF file has",
    ),
    "key that is no UTF-8": (
        lambda b: b.replace(b"general.name", b"general\xff\xffame"),
        r"metadata entry \d+ holds a text that is no UTF-8",
    ),
    "a key twice": (
        lambda b: b.replace(b"llama.block_count", b"llama.block_count"[::-1]).replace(
            b"tokenizer.ggml.scores", b"tokenizer.ggml.tokens"
        ),
        r"the metadata key 'tokenizer\.ggml\.tokens' is there twice",
    ),
    "length of a tensor's name": (
        lambda b: patched(b, length_before(b, "matrix"), u64(BIG)),
        r"tensor entry 2 needs 9223372036854775808 bytes",
    ),
    "a tensor twice": (lambda b: b.replace(b"Q4_0", b"Q4_1"), "the tensor 'Q4_1' is there twice"),
    "axes": (
        lambda b: patched(b, after(b, "matrix"), u32(2**31)),
        r"the tensor 'matrix' has 2147483648 axes, expected 1 to 4",
    ),
    "a shape that wraps around": (
        lambda b: patched(b, after(b, "matrix") + 4, u64(2**32) + u64(2**32)),
        r"the tensor 'matrix' has the shape \(4294967296, 4294967296\), more elements than any file holds",
    ),
    "a shape larger than the file": (
        lambda b: patched(b, after(b, "matrix") + 4, u64(64) + u64(2**20)),
        r"the tensor 'matrix' of type F32 ends at byte \d+ of the file, which has \d+",
    ),
    "a row that is no block": (
        lambda b: patched(b, after(b, "Q8_0") + 4, u64(63)),
        "'Q8_0' of type Q8_0 has rows of 63 elements, expected a multiple of 32",
    ),
    "type of a tensor": (
        lambda b: patched(b, after(b, "matrix") + 20, u32(999)),
        r"the tensor 'matrix' has the type 999, which this version of the gguf library does",
    ),
    "a type that was removed": (
        lambda b: patched(b, after(b, "matrix") + 20, u32(31)),
        r"lie\.gguf: the tensor 'matrix' has the type Q4_0_4_4, which llama\.cpp no longer reads; use a file in Q4_0",
    ),
    "offset of a tensor": (
        lambda b: patched(b, after(b, "matrix") + 24, u64(BIG)),
        r"the tensor 'matrix' starts at byte 9223372036854775808 of the data, expected 256, where the last one ends",
    ),
    "offset at the end": (
        lambda b: patched(b, after(b, "matrix") + 24, u64(len(b) - 4)),
        "expected 256, where the last one ends",
    ),
}


@pytest.mark.chaos
@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_refused_with_its_name_and_the_lie(lie: str, sound: bytes, tmp_path: Path) -> None:
    damage, message = LIES[lie]
    content = damage(sound)
    assert content != sound
    with pytest.raises(FormatError, match=message) as caught:
        opened(tmp_path / "lie.gguf", content)
    assert str(caught.value).startswith(f"{tmp_path / 'lie.gguf'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.chaos
def test_alignments_that_are_none_are_refused(tmp_path: Path) -> None:
    for alignment in (0, 3, 48):
        writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
        writer.add_uint32("general.alignment", alignment)
        writer.add_tensor("norm", values()[0].copy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(FormatError, match="alignment"):
            GGUFFile(tmp_path / "x.gguf")


@pytest.mark.chaos
def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FormatError, match=r"none\.gguf: cannot be opened \(No such file or directory\); expected a file"
    ):
        GGUFFile(tmp_path / "none.gguf")
    with pytest.raises(FormatError, match="is a folder, expected a file"):
        GGUFFile(tmp_path)


@pytest.mark.property
@pytest.mark.chaos
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_give_values_or_one_clear_sentence(sound: bytes, tmp_path: Path, data: st.DataObject) -> None:
    header = sound.index(values()[0].tobytes())
    content = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.sampled_from([0, 1, 2, 4, 8, 9, 127, 128, 255]))
    try:
        file = opened(tmp_path / "damaged.gguf", bytes(content))
        for tensor in file.tensors.values():
            tensor.load()
    except FormatError as error:
        assert re.match(rf"{re.escape(str(tmp_path))}/damaged\.gguf: ", str(error))
