"""`entrenar data check --preference`: what a preference run would read, with the answers of both kinds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from entrenar.cli.main import dispatch
from entrenar.models.checkpoint import Checkpoint
from entrenar.train import TrainConfig, preference_data
from entrenar.train.config import Checkpointing, Data, Preferences, Training
from tests.train.builders import run_entrenar, write_records

pytestmark = pytest.mark.unit
PAIRS: list[dict[str, Any]] = [
    {"prompt": "What is <b>1</b>?", "chosen": "It is <i>one</i>.", "rejected": "No idea."},
    {"prompt": "What is 2?", "chosen": "It is two.", "rejected": "It is three, or four."},
    {"prompt": "What is 2?", "chosen": "It is two.", "rejected": "It is three, or four."},
]
EMPTY = {"prompt": "What is 3?", "chosen": "It is three.", "rejected": ""}
LABELLED: list[dict[str, Any]] = [
    {"prompt": "What is 1?", "completion": "It is one.", "label": True},
    {"prompt": "What is 1?", "completion": "It is two.", "label": False},
    {"prompt": "What is 3?", "completion": "It is three.", "label": True},
]


def check(model: Path, path: Path, method: str, *more: object) -> tuple[dict[str, Any], str, int]:
    """What --json prints, the error stream and the status."""
    words = ("data", "check", "--data", path, "--preference", method, "--model", model, "--json", *more)
    ended = run_entrenar(*words)
    return json.loads(ended.stdout), ended.stderr, ended.returncode


def trained(shown: dict[str, Any]) -> str:
    return "".join(run["text"] for run in shown["runs"] if run["trained"])


@pytest.mark.parametrize("method", ["dpo", "orpo"])
def test_pairs_are_counted_and_both_answers_are_shown(method: str, model: Path, tmp_path: Path) -> None:
    path, page = write_records(tmp_path / "d.jsonl", [*PAIRS, EMPTY, {"text": "a"}]), tmp_path / "check.html"
    found, error, status = check(model, path, method, "--html", page, "--show", 1)
    assert (status, error) == (1, f"error: {path}, line 4: rejected is '', expected non-empty text or messages.\n")
    assert (found["records"], found["samples"], found["bad_records"], found["empty_answers"]) == (5, 6, 2, 1)
    assert found["bad"] == error.removeprefix("error: ").strip()
    assert (found["duplicates"], found["first_duplicate"]) == (1, f"{path}, line 3")
    assert found["answers"] == {"chosen": 3, "rejected": 3}
    assert sum(row["samples"] for row in found["lengths"]) == 6
    assert 0 < found["trained_percent"] == 100 * found["trained_tokens"] / found["tokens"] < 100
    assert [shown["where"] for shown in found["shown"]] == [f"{path}, line 1, chosen", f"{path}, line 1, rejected"]
    for shown, answer in zip(found["shown"], ("It is <i>one</i>.", "No idea."), strict=True):
        assert trained(shown).startswith(answer) and "What is" not in trained(shown)
    text = page.read_text()
    assert "<mark>It is &lt;i&gt;one&lt;/i&gt;." in text and "<mark>No idea." in text and "<i>" not in text
    assert "line 1, rejected</h3>" in text and "3 chosen, 3 rejected" in text


def test_labelled_answers_and_pairs_are_read_with_their_labels(model: Path, tmp_path: Path) -> None:
    bad = {"prompt": "What is 1?", "completion": "It is two.", "label": "no"}
    path = write_records(tmp_path / "d.jsonl", [LABELLED[0], bad, *LABELLED[1:], PAIRS[0]])
    found, error, status = check(model, path, "kto")
    assert (status, error) == (1, f"error: {path}, line 2: label is 'no', expected true or false.\n")
    assert (found["records"], found["samples"], found["bad_records"], found["duplicates"]) == (5, 5, 1, 0)
    assert found["answers"] == {"label true": 3, "label false": 2}
    assert [shown["where"].removeprefix(f"{path}, ") for shown in found["shown"]] == [
        "line 1, label true",
        "line 3, label false",
        "line 4, label true",
    ]
    pairs, _, status = check(model, write_records(tmp_path / "e.jsonl", PAIRS), "kto", "--show", 1)
    assert (status, pairs["answers"]) == (0, {"label true": 3, "label false": 3})
    assert (len(pairs["shown"]), pairs["duplicates"]) == (2, 1)


@pytest.mark.parametrize("colours", [True, False])
def test_both_answers_are_coloured_in_the_terminal(
    colours: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_records(tmp_path / "d.jsonl", PAIRS)
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    if colours:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")
    words = ["data", "check", "--data", str(path), "--preference", "dpo", "--model", str(model), "--show", "1"]
    dispatch(words)
    shown = capsys.readouterr().out
    if colours:
        assert "\x1b[1;32mIt is <i>one</i>." in shown and "\x1b[1;32mNo idea." in shown
    else:
        assert "«It is <i>one</i>." in shown and "«No idea." in shown and "3 chosen, 3 rejected" in shown
        assert "line 1, rejected: what is trained stands in « »" in shown and "line 2, chosen" not in shown


@pytest.mark.parametrize(("method", "records"), [("dpo", PAIRS), ("orpo", PAIRS), ("kto", LABELLED), ("kto", PAIRS)])
@pytest.mark.parametrize("length", [32, 64])
def test_a_check_counts_what_a_run_trains_on(
    method: str, records: list[dict[str, Any]], length: int, model: Path, tmp_path: Path
) -> None:
    paths = [write_records(tmp_path / "a.jsonl", records), write_records(tmp_path / "b.csv", records[:1])]
    words = ("--sequence-length", length, "--eval-data", tmp_path / "b.csv")
    found, error, _ = check(model, paths[0], method, *words)
    checkpoint = Checkpoint.open(model)
    config = TrainConfig(
        Training(sequence_length=length, batch_size=2),
        data=Data(path=[str(path) for path in paths], held_out_fraction=0),
        checkpointing=Checkpointing(str(tmp_path / "out")),
        preference=Preferences(method),
    )
    joined = run_entrenar(
        *("data", "check", "--data", *paths, "--preference", method, "--model", model, "--json"),
        *("--sequence-length", length),
    )
    both = json.loads(joined.stdout)
    assert found["evaluation"]["overlap"] == {"records": 1, "first": f"{paths[1]}, line 2"} and not error
    assert [file["samples"] for file in both["files"]] == [found["samples"], found["evaluation"]["samples"]]
    sides = preference_data.encode(config, checkpoint.tokenizer(), checkpoint.config.vocab_size)
    report = asdict(sides.report.training)
    assert {key: both[key] for key in report if key in both} == {key: report[key] for key in report if key in both}
    assert both["remarks"] == list(sides.report.remarks()) and report["samples"] == sum(both["answers"].values())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--format", "text"], "data.format is text, which dpo does not use; leave it out."),
        (["--train-on-prompt"], "data.train_on_prompt is true, which dpo does not use; leave it out."),
        (["--sequence-length", "16"], "has an answer of which no token is trained in a row"),
    ],
)
def test_what_a_preference_run_refuses_is_refused(words: list[str], sentence: str, model: Path, tmp_path: Path) -> None:
    path = write_records(tmp_path / "d.jsonl", PAIRS)
    ended = run_entrenar("data", "check", "--data", path, "--preference", "dpo", "--model", model, *words)
    assert ended.returncode == 1 and sentence in ended.stderr and len(ended.stderr.strip().splitlines()) == 1


def test_a_file_of_others_names_what_is_missing(model: Path, tmp_path: Path) -> None:
    path = write_records(tmp_path / "d.jsonl", LABELLED)
    found, error, status = check(model, path, "dpo")
    assert (status, found["bad_records"], found["samples"], found["shown"]) == (1, 3, 0, [])
    assert f"{path}, line 1: has no chosen and no rejected, expected an object with prompt" in error
    ended = run_entrenar("data", "check", "--data", path, "--model", model)
    assert ended.returncode == 1 and "--preference kto" in ended.stderr
