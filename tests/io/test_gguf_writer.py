"""GGUF files out: what the gguf library reads of them, and what is refused with nothing written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entrenar.errors import FormatError
from entrenar.io.gguf import GGUFFile
from entrenar.io.gguf_writer import OutputTensor, write_gguf

WHOLE = {"general.architecture": "llama"}
VALUES: list[tuple[Any, list[str]]] = [
    ("text ▁ 🦙", ["STRING"]),
    ("", ["STRING"]),
    (True, ["BOOL"]),
    (0, ["UINT32"]),
    (2**32 - 1, ["UINT32"]),
    (-1, ["INT32"]),
    (2**32, ["INT64"]),
    (-(2**63), ["INT64"]),
    (2**64 - 1, ["UINT64"]),
    (0.5, ["FLOAT32"]),
    (1e300, ["FLOAT64"]),
    (float("inf"), ["FLOAT32"]),
    (["a", "", "ü"], ["ARRAY", "STRING"]),
    ([1, 5, -3], ["ARRAY", "INT32"]),
    ([1, 2**40], ["ARRAY", "INT64"]),
    ([0.25, 1], ["ARRAY", "FLOAT32"]),
    ([True, False], ["ARRAY", "BOOL"]),
    (b"\x00\xff", ["ARRAY", "UINT8"]),
]


@pytest.mark.unit
def test_the_library_reads_every_kind_of_value(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", WHOLE | {f"a.{i}": value for i, (value, _) in enumerate(VALUES)}, [])
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    for i, (value, types) in enumerate(VALUES):
        assert [type_.name for type_ in fields[f"a.{i}"].types] == types
        assert fields[f"a.{i}"].contents() == (list(value) if isinstance(value, bytes) else value)
    ours = GGUFFile(tmp_path / "x.gguf").metadata
    for i, (value, _) in enumerate(VALUES):
        assert ours[f"a.{i}"] == (list(value) if isinstance(value, bytes) else value)


@pytest.mark.property
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), max_size=5),
    keys=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda key: key != "general.architecture"),
        st.one_of(st.text(max_size=9), st.integers(-(2**63), 2**64 - 1), st.lists(st.text(max_size=3), max_size=3)),
        max_size=4,
    ),
)
def test_what_is_written_is_read(shapes: list[list[int]], keys: dict[str, Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)}
    tensors = [
        OutputTensor(name, array.shape, "F32", lambda array=array: iter(array))  # type: ignore[misc]
        for name, array in arrays.items()
    ]
    write_gguf(tmp_path / "x.gguf", WHOLE | keys, tensors)
    file = GGUFFile(tmp_path / "x.gguf")
    assert file.metadata == WHOLE | keys
    assert list(file.tensors) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(file.tensors[name].load(), array)


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("metadata", "tensor", "message"),
    [
        ({"a": 2**64}, {}, "The metadata key a holds 18446744073709551616, more than 64 bits can."),
        ({"a": [1, "b"]}, {}, r"The metadata key a holds \[1, 'b'\], expected texts, numbers or flags, all of a kind."),
        ({"a": None}, {}, r"The metadata key a holds \[null\], expected"),
        ({"a": "\ud800"}, {}, "holds half a character"),
        ({}, {"name": "n" * 64}, "has a name of more than 63 bytes"),
        ({}, {"type": "Q8_0"}, "has rows of 8 elements, expected a multiple of 32 for the type Q8_0"),
        ({}, {"rows": lambda: [np.zeros(5, np.float32)]}, "The tensor t came with 20 bytes, expected 32."),
    ],
)
def test_what_no_file_can_hold_is_refused(
    metadata: dict[str, Any], tensor: dict[str, Any], message: str, tmp_path: Path
) -> None:
    whole = {"name": "t", "shape": (8,), "type": "F32", "rows": lambda: [np.zeros(8, np.float32)]}
    with pytest.raises(FormatError, match=message):
        write_gguf(tmp_path / "x.gguf", WHOLE | metadata, [OutputTensor(**(whole | tensor))])
    assert not list(tmp_path.iterdir())
