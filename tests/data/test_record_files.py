"""CSV, TSV, Parquet, text files and folders of them hold what the same records hold as JSON Lines."""

from __future__ import annotations

import builtins
import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from entrenar.data import Example, ExampleFile, encode_examples, read_examples
from entrenar.errors import ConfigError, FormatError
from entrenar.io.tokenizer import Tokenizer

RECORDS = [
    {"prompt": "What is\n1, or 2?", "completion": 'He said "two",\r\nand left.'},
    {"prompt": "Größe?", "completion": "Klein."},
    {"prompt": "a", "completion": "b"},
]
CHATS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}], "tools": [{"name": "f"}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
]


def json_lines(path: Path, records: list[dict[str, Any]]) -> list[Example]:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_examples(path)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("suffix", "delimiter"),
    [
        *(("csv", ","), ("csv", ";"), ("csv", "\t"), ("tsv", "\t"), ("tsv", ","), ("tsv", ";")),
        *(("data", ","), ("data", ";")),
    ],
)
def test_a_table_is_its_rows(suffix: str, delimiter: str, tmp_path: Path) -> None:
    path = tmp_path / f"d.{suffix}"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(RECORDS)
    examples = ExampleFile(path)
    assert list(examples) == json_lines(tmp_path / "d.jsonl", RECORDS)
    assert [example.where.rsplit(", ")[1] for example in examples] == ["line 2", "line 5", "line 6"]
    assert examples[2] == list(examples)[2] and [*examples.read([2, 0])] == [examples[2], examples[0]]


@pytest.mark.unit
def test_a_table_may_hold_messages_as_json_and_empty_cells(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["messages", "tools", "system"])
        for record in CHATS:
            writer.writerow([json.dumps(record["messages"]), json.dumps(record.get("tools", "")).strip('"'), ""])
    assert read_examples(path) == json_lines(tmp_path / "d.jsonl", CHATS)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,completion\na\n", r"d\.csv, line 2: has 1 values, expected 2, as the first row names columns"),
        ("prompt,completion\na,b\nc,d,e\n", r"d\.csv, line 3: has 3 values, expected 2"),
        ("prompt,prompt\na,b\n", r"d\.csv: has two columns 'prompt'; keep one"),
        ('prompt,completion\n"a,b\n', r"d\.csv, line 2: is no row of CSV \("),
        ("prompt,completion\n", r"d\.csv: holds no examples"),
        ("", r"d\.csv: holds no examples"),
        ("messages\n[1\n", r"d\.csv, line 2: messages is not JSON \("),
        ("prompt,completion\na,\n", r"d\.csv, line 2: has no completion"),
        ("prompt,completion\na,\udcff\n", r"d\.csv: is not UTF-8 text"),
        ("question,answer\na,b\n", r"d\.csv, line 2: is a question with its answer, expected .*; rename the columns"),
    ],
)
def test_a_wrong_table_is_one_sentence(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text(content, errors="surrogateescape")
    with pytest.raises(FormatError, match=message):
        read_examples(path)


@pytest.mark.unit
@pytest.mark.parametrize("records", [RECORDS, CHATS])
def test_a_parquet_file_is_its_rows(records: list[dict[str, Any]], tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path, many = tmp_path / "d.data", records * 300
    parquet.write_table(pyarrow.Table.from_pylist(many), path, row_group_size=280)
    examples, expected = ExampleFile(path), json_lines(tmp_path / "d.jsonl", many)
    assert list(examples) == expected and examples[len(many) - 1] == expected[-1]
    assert examples[290].where == f"{path}, row 291"


@pytest.mark.unit
def test_a_damaged_parquet_file_and_a_missing_pyarrow_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.parquet"
    path.write_bytes(b"PAR1" + bytes(64))
    with pytest.raises(FormatError, match=r"d\.parquet: cannot be read as Parquet \("):
        ExampleFile(path)
    real = builtins.__import__

    def absent(name: str, *arguments: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=r"is not installed; pip install 'entrenar\[parquet\]'\.$"):
        ExampleFile(path)


@pytest.mark.unit
def test_text_files_and_folders_are_whole_texts_split_into_rows(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "below").mkdir(parents=True)
    (folder / "b.txt").write_text("The end.")
    (folder / "below" / "a.md").write_text("one, two, three and four. " * 20)
    (folder / "c.png").write_bytes(b"\x89PNG")
    examples = read_examples(folder)
    assert [example.where for example in examples] == [str(folder / "b.txt"), str(folder / "below" / "a.md")]
    assert examples[0] == read_examples(folder / "b.txt")[0] and examples[0].document == "The end."
    tokenizer = Tokenizer.train([example.text for example in examples], 280)
    whole = encode_examples(examples, tokenizer, 100_000)[1]
    report = encode_examples(examples, tokenizer, 16)[1]
    assert report.split == 1 and report.trained_tokens == whole.trained_tokens
    (folder / "b.txt").write_text(" ")
    with pytest.raises(FormatError, match=r"b\.txt: text is ' ', expected non-empty text"):
        read_examples(folder)
    (folder / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(FormatError, match=r"b\.txt: is not UTF-8 text"):
        read_examples(folder)


@pytest.mark.unit
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_large_file_is_not_held_in_memory(suffix: str, tmp_path: Path) -> None:
    path, answer = tmp_path / f"d.{suffix}", "word " * 400
    with path.open("w", newline="") as file:
        if suffix == "csv":
            csv.writer(file).writerows([["prompt", "completion"], *[["What?", answer]] * 4000])
        else:
            file.writelines(json.dumps({"prompt": "What?", "completion": answer}) + "\n" for _ in range(4000))
    tracemalloc.start()
    try:
        count = sum(1 for _ in ExampleFile(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 4000 and path.stat().st_size > 8e6 and peak < 1e6
