"""Records are found and read one at a time: lists longer than a window, memory, files that change meanwhile."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entrenar.data import ExampleFile, json_records
from entrenar.data.json_records import RecordFile
from entrenar.errors import FormatError

VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.property
@pytest.mark.parametrize("window", [1, 3, 64])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(VALUES, max_size=5), indent=st.sampled_from([None, 1]), ascii_only=st.booleans())
def test_a_list_is_read_through_windows_of_any_size(
    window: int, records: list[Any], indent: int | None, ascii_only: bool, tmp_path: Path
) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_records, "WINDOW", window)
        file = RecordFile(path)
    assert [record for _, record in file] == records
    assert [where for where, _ in file] == [f"{path}, record {n}" for n in range(1, len(records) + 1)]


@pytest.mark.unit
def test_records_are_read_in_any_order_and_lines_are_counted_as_editors_do(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\r\n{"a": 1}\r\r\n\n{"a": 2}\r{"a": "\xe2\x80\xa8"}')
    file = RecordFile(path)
    assert list(file.read([2, 0])) == [(f"{path}, line 6", {"a": "\u2028"}), (f"{path}, line 2", {"a": 1})]
    assert file[-1] == file[2] and len(file[1:]) == 2 and len(file) == 3
    with pytest.raises(IndexError):
        file[3]


@pytest.mark.memory
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_a_file_is_never_held_as_a_whole(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_records, "WINDOW", 1 << 14)
    path, count = tmp_path / f"data{suffix}", 1000
    records = [{"prompt": f"{n} " * 500, "completion": "b" * 1000} for n in range(count)]
    lines = [json.dumps(record) for record in records]
    path.write_text("\n".join(lines) if suffix == ".jsonl" else f"[{', '.join(lines)}]")
    del records, lines
    tracemalloc.start()
    try:
        assert sum(len(example.messages) for example in ExampleFile(path)) == 2 * count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.15 * path.stat().st_size


@pytest.mark.chaos
def test_a_file_that_changes_under_a_run_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    file = ExampleFile(path)
    path.write_text('{"prompt": "a", "completion": "b"}\n' * 2)
    with pytest.raises(FormatError, match=r"data\.jsonl: became shorter while it was read\."):
        list(file)
    path.unlink()
    with pytest.raises(FormatError, match=r"data\.jsonl: cannot be read \(No such file or directory\)\."):
        list(file)
