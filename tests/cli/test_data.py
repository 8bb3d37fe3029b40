"""`entrenar data check`: what is in a file, its first fault, and samples with what is trained, in terminal and HTML."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from entrenar.cli.main import dispatch
from tests.train.builders import run_entrenar

RECORDS = [
    {"prompt": "What is <b>1</b>?", "completion": "It is <i>one</i>."},
    {"prompt": "What is 2?", "completion": "It is two."},
    {"prompt": "What is 2?", "completion": "It is two."},
    {"prompt": "What is 3?", "completion": ""},
    {"prompt": "What is 4?", "completion": 4},
]


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.unit
def test_a_check_counts_and_names_the_first_bad_record(model: Path, tmp_path: Path) -> None:
    path, page = write(tmp_path / "d.jsonl", RECORDS), tmp_path / "check.html"
    ended = run_entrenar("data", "check", "--data", path, "--model", model, "--json", "--html", page)
    found = json.loads(ended.stdout)
    assert (ended.returncode, ended.stderr) == (1, f"error: {found['bad']}\n")
    assert (found["records"], found["samples"], found["bad_records"], found["empty_answers"]) == (5, 3, 2, 1)
    assert found["bad"] == f"{path}, line 4: completion is '', expected non-empty text."
    assert (found["duplicates"], found["first_duplicate"]) == (1, f"{path}, line 3")
    assert sum(row["samples"] for row in found["lengths"]) == 3
    assert found["trained_percent"] == 100 * found["trained_tokens"] / found["tokens"]
    text = page.read_text()
    assert "<mark>It is &lt;i&gt;one&lt;/i&gt;." in text and "&lt;b&gt;1&lt;/b&gt;" in text
    assert "<i>" not in text and "<script" not in text and "http" not in text and f"{path}, line 4" in text


@pytest.mark.unit
def test_a_refused_record_moves_no_place_of_those_behind_it(model: Path, tmp_path: Path) -> None:
    bad, one, two = RECORDS[3], RECORDS[0], RECORDS[1]
    path = write(tmp_path / "d.jsonl", [bad, one, bad, two, bad, two, one])
    path.write_text("\n" + path.read_text())  # a blank line counts
    others = write(tmp_path / "e.jsonl", [bad, bad, {"prompt": "What is 9?", "completion": "Nine."}, bad, two, bad])
    words = ("data", "check", "--data", path, "--eval-data", others, "--model", model, "--json")
    found = json.loads(run_entrenar(*words).stdout)
    assert (found["bad_records"], found["duplicates"], found["first_duplicate"]) == (3, 2, f"{path}, line 7")
    assert found["evaluation"]["overlap"] == {"records": 1, "first": f"{others}, line 5"}


@pytest.mark.unit
@pytest.mark.parametrize("colours", [True, False])
def test_samples_are_coloured_in_the_terminal_and_marked_without_colours(
    colours: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "d.jsonl", RECORDS[:3])
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    if colours:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    dispatch(["data", "check", "--data", str(path), "--model", str(model), "--show", "1"])
    shown = capsys.readouterr().out
    if colours:
        assert "\x1b[1;32mIt is <i>one</i>." in shown and "«" not in shown
    else:
        assert "«It is <i>one</i>." in shown and "line 1: what is trained stands in « »" in shown
        assert "% of them trained" in shown and "line 2: what is trained" not in shown


@pytest.mark.unit
def test_records_to_evaluate_on_are_checked_too_and_held_against_the_others(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", RECORDS[:3])
    others = write(tmp_path / "e.jsonl", [RECORDS[1], {"prompt": "What is 9?", "completion": "Nine."}, RECORDS[3]])
    words = ("data", "check", "--data", path, "--eval-data", others, "--model", model)
    ended = run_entrenar(*words, "--json", "--html", tmp_path / "check.html")
    found = json.loads(ended.stdout)
    theirs = found["evaluation"]
    assert (ended.returncode, ended.stderr) == (1, f"error: {theirs['bad']}\n")
    assert (found["records"], found["bad_records"], found["overlap"]) == (3, 0, None)
    assert (theirs["records"], theirs["samples"], theirs["bad_records"], theirs["duplicates"]) == (3, 2, 1, 0)
    assert theirs["bad"].startswith(f"{others}, line 3: ")
    assert theirs["overlap"] == {"records": 1, "first": f"{others}, line 1"}
    assert str(path) in (tmp_path / "check.html").read_text() and str(others) in (tmp_path / "check.html").read_text()
    ended = run_entrenar(*words, COLUMNS="400")
    shown = ended.stdout
    assert f"1: the first is {others}, line 1" in shown and shown.count("duplicates") == 2
    assert f"1: the first is {theirs['bad']}" in shown and ended.stderr == f"error: {theirs['bad']}\n"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["check", "--data", "none.jsonl"], 1, "error: none.jsonl: cannot be read (No such file or directory)"),
        (["look", "--data", "none.jsonl"], 2, "look"),
        (["check"], 2, "--data"),
        (["check", "--data", "d.jsonl", "--shwo", "1"], 2, "--show"),
    ],
)
def test_a_wrong_use_is_one_sentence(words: list[str], status: int, sentence: str, model: Path) -> None:
    ended = run_entrenar("data", *words, "--model", model)
    assert ended.returncode == status and sentence in ended.stderr and len(ended.stderr.strip().splitlines()) == 1
    assert ended.stdout == ""
