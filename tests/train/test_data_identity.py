"""`entrenar data check` counts what a run trains on, for each layout, kind of file and option."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from entrenar.models.checkpoint import Checkpoint
from entrenar.train import dataset
from entrenar.train.config import Checkpointing, Data, TrainConfig, Training
from entrenar.train.data_check import check_data
from tests.train.builders import SMALL, config_for, quiet, run_entrenar, write_model, write_records

pytestmark = pytest.mark.unit
LENGTH = 48
ANSWERS = ["four", "It is five, as three and two make five.", "Six, " * 12, "Seven and so on.", "eight", "nine"]
QUESTIONS = [f"What is {n} plus 2?" for n in range(6)]


def turns(question: str, answer: str, **marks: Any) -> list[dict[str, Any]]:
    early = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day.", **marks}]
    return [*early, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def sharegpt(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


LAYOUTS: dict[str, list[dict[str, Any]]] = {
    "messages": [{"messages": turns(q, a)} for q, a in zip(QUESTIONS, ANSWERS, strict=True)],
    "messages with weights": [
        {"messages": turns(q, a, weight=[0, 0.5, 1][i % 3])}
        for i, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ],
    "sharegpt": [
        {"conversations": sharegpt(q, a), "system": "Be brief."} for q, a in zip(QUESTIONS, ANSWERS, strict=True)
    ],
    "alpaca": [{"instruction": q, "input": "", "output": a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)],
    "prompt_completion": [{"prompt": q, "completion": a} for q, a in zip(QUESTIONS, ANSWERS, strict=True)],
    "text": [{"text": f"{q} {a}", "source": "a book"} for q, a in zip(QUESTIONS, ANSWERS, strict=True)],
    "segments": [
        {"segments": [{"label": False, "text": q}, {"label": True, "text": a}]}
        for q, a in zip(QUESTIONS, ANSWERS, strict=True)
    ],
}
ENDINGS = ("jsonl", "json", "csv", "tsv", "parquet")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def counts(model: Path, data: Data, output: Path, length: int = LENGTH) -> dict[str, Any]:
    """What a check and a run count, which is the same."""
    checkpoint = Checkpoint.open(model)
    tokenizer, vocabulary = checkpoint.tokenizer(), checkpoint.config.vocab_size
    checked = check_data(data, tokenizer, vocabulary, length)
    assert checked.bad is None
    config = TrainConfig(training=Training(sequence_length=length), data=data, checkpointing=Checkpointing(str(output)))
    report = dataset.encode(config, tokenizer, vocabulary).report
    keys = ("examples", "samples", "tokens", "trained_tokens", "cut", "split", "unmarked", "alpaca")
    run = {key: getattr(report.training, key) + getattr(report.held_out, key) for key in keys}
    assert run == {key: getattr(checked.report, key) for key in keys}
    for name in ("left_out", "unused"):
        sides = [getattr(side, name) for side in (report.training, report.held_out)]
        sums = {key: sum(side.get(key, 0) for side in sides) for key in {*sides[0], *sides[1]}}
        assert sums == getattr(checked.report, name)
    return run | {"records": checked.records, "left_out": sum(checked.report.left_out.values())}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_check_counts_what_a_run_trains_on(layout: str, ending: str, model: Path, tmp_path: Path) -> None:
    data = Data(path=str(write_records(tmp_path / f"a.{ending}", LAYOUTS[layout])), held_out_fraction=0.3)
    found = counts(model, data, tmp_path)
    assert found["records"] == found["examples"] == 6 and found["trained_tokens"] > 0
    plain = counts(model, replace(data, path=str(write_records(tmp_path / "b.jsonl", LAYOUTS[layout]))), tmp_path)
    assert found == plain  # the same records, whatever file holds them


@pytest.mark.parametrize(
    "options",
    [
        *({"too_long": how} for how in ("truncate", "drop", "split")),
        {"train_on_prompt": True},
        {"answers": "last"},
        {"max_examples": 4},
        {"held_out_fraction": 0.0},
        {"format": "messages"},
    ],
)
def test_options_count_alike(options: dict[str, Any], model: Path, tmp_path: Path) -> None:
    records = LAYOUTS["messages"]
    data = Data(path=str(write_records(tmp_path / "a.jsonl", records)), held_out_fraction=0.3)
    plain, found = (counts(model, given, tmp_path, 88) for given in (data, replace(data, **options)))
    assert plain["cut"] > 0 and plain["left_out"] == 0
    same = options.get("too_long") == "truncate" or {"held_out_fraction", "format"} & set(options)
    assert (found == plain) == bool(same)


def test_texts_folders_and_several_files_count_alike(model: Path, tmp_path: Path) -> None:
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    for i, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        place = tmp_path / "texts" / ("deep" if i % 2 else "") / f"{i}.{'md' if i % 3 else 'txt'}"
        place.write_text(f"{question}\n\n{answer}\n" * (1 + 9 * (i == 4)))
    folder = counts(model, Data(path=str(tmp_path / "texts"), held_out_fraction=0.3), tmp_path)
    assert folder["examples"] == 6 and folder["split"] >= 1
    one = counts(model, Data(path=str(tmp_path / "texts" / "4.md"), held_out_fraction=0.0), tmp_path)
    assert one["examples"] == 1 and one["samples"] > 1
    paths = [
        str(write_records(tmp_path / f"{name}.jsonl", LAYOUTS[name])) for name in ("messages", "alpaca", "segments")
    ]
    several = counts(model, Data(path=[*paths, str(tmp_path / "texts")], held_out_fraction=0.3), tmp_path)
    each = [counts(model, Data(path=path, held_out_fraction=0.3), tmp_path) for path in paths]
    assert several == {key: folder[key] + sum(found[key] for found in each) for key in several}


def test_the_command_says_what_the_summary_of_a_run_keeps(model: Path, tmp_path: Path) -> None:
    data = str(write_records(tmp_path / "a.csv", LAYOUTS["prompt_completion"]))
    said = run_entrenar("data", "check", "--data", data, "--model", model, "--sequence-length", LENGTH, "--json")
    assert said.returncode == 0, said.stderr
    checked = json.loads(said.stdout)
    training = replace(SMALL, steps=1, sequence_length=LENGTH)
    quiet(model, config_for(Path(data), tmp_path / "run", training))
    sides = json.loads((tmp_path / "run" / "summary.json").read_text())["data"]
    for key in ("samples", "tokens", "trained_tokens", "cut"):
        assert checked[key] == sides["training"][key] + sides["held_out"][key]
