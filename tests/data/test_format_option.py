"""data.format: the layout that is asked for and no other, with a sentence where a record has it not."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from entrenar.choices import FORMATS
from entrenar.data import ExampleFile
from entrenar.data.formats import LAYOUTS
from entrenar.errors import ConfigError, FormatError
from entrenar.train.config import Data, TrainConfig
from entrenar.train.options import Checked, Rows
from entrenar.train.synonyms import format_hint

RECORDS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "m"}]},
    "prompt_completion": {"prompt": "a", "completion": "p"},
    "alpaca": {"instruction": "a", "output": "i"},
    "sharegpt": {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "s"}]},
    "text": {"text": "t"},
    "segments": {"segments": [{"label": False, "text": "a"}, {"label": True, "text": "g"}]},
}


def write(path: Path, record: dict[str, Any]) -> Path:
    path.write_text(json.dumps(record) + "\n")
    return path


@pytest.mark.unit
def test_every_layout_can_be_asked_for() -> None:
    assert set(FORMATS) == {"auto", *RECORDS} and sorted(FORMATS.values()) == sorted(["", *LAYOUTS])


@pytest.mark.unit
@pytest.mark.parametrize("name", RECORDS)
def test_a_layout_is_read_as_auto_reads_it_and_alone_among_others(name: str, tmp_path: Path) -> None:
    (expected,) = ExampleFile(write(tmp_path / "one.jsonl", RECORDS[name]))
    assert list(ExampleFile(tmp_path / "one.jsonl", name)) == [expected]
    everything = {key: value for record in RECORDS.values() for key, value in record.items()}
    path = write(tmp_path / "all.jsonl", everything)
    (found,) = ExampleFile(path, name)
    assert found == expected and set(found.unused) == set(everything) - set(RECORDS[name])
    with pytest.raises(FormatError, match="keep the one that is meant"):
        list(ExampleFile(path))


@pytest.mark.unit
@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_another_layout_is_one_sentence(name: str, tmp_path: Path) -> None:
    other = "text" if name != "text" else "alpaca"
    path = write(tmp_path / "d.jsonl", RECORDS[other])
    sentence = rf"d\.jsonl, line 1: has no {FORMATS[name]}, which data\.format = {name} reads, and has the keys "
    with pytest.raises(FormatError, match=sentence):
        list(ExampleFile(path, name))


@pytest.mark.unit
def test_text_reads_a_file_of_any_name(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text("one line\nanother")
    (example,) = ExampleFile(path, "text")
    assert (example.document, example.whole_file) == ("one line\nanother", True)
    with pytest.raises(FormatError):
        list(ExampleFile(path))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("input_output", "segments"),
        ("chat_template", "messages"),
        ("chat_template.default", "messages"),
        ("alpaca:phi", "alpaca"),
        ("completions", "prompt_completion"),
        ("completion", "text (texts without a prompt, as axolotl has them) or prompt_completion"),
        ("chat", "messages"),
        ("Prompt-Completion", "prompt_completion"),
    ],
)
def test_another_program_s_name_of_a_format_is_answered_with_ours(theirs: str, ours: str) -> None:
    for make in (Data, partial(Rows, "a"), partial(Checked, "a")):
        with pytest.raises(ConfigError) as error:
            make(format=theirs)
        assert str(error.value).endswith(f"format is '{theirs}'; it is called {ours} here.")
    assert format_hint("texts") is None and format_hint("jsonl") is None  # the nearest name, or the list of them


@pytest.mark.unit
def test_a_format_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^data\.format is 'jsonl'; "):
        Data(path="a", format="jsonl")
    with pytest.raises(ConfigError, match=r"^data\.format is text, which has no effect without data\.path"):
        TrainConfig(data=Data(format="text"))
