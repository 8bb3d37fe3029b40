"""A validation file of its own: all other examples are trained on, and texts of both files are said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from entrenar.errors import ConfigError, FormatError
from entrenar.io.tokenizer import Tokenizer
from entrenar.train import dataset
from entrenar.train.config import Data, TrainConfig, Training


def write(path: Path, answers: list[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": "What?", "completion": answer}) + "\n" for answer in answers))
    return str(path)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["What? One, two, three, four."], 280)


@pytest.mark.unit
def test_the_file_is_held_out_and_what_is_trained_too_is_said(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path, other = write(tmp_path / "a.jsonl", ["One", "two", "three"]), write(tmp_path / "b.jsonl", ["two", "four"])
    config = TrainConfig(training=Training(evaluate_every=1), data=Data(path=path, eval_path=other))
    data = dataset.encode(config, tokenizer, tokenizer.vocab_size)
    assert (len(data.training), len(data.held_out), data.shown.where) == (3, 2, f"{other}, line 1")
    assert f"{other}: 1 of its 2 samples is of texts that {path} holds too" in " ".join(data.report.remarks())
    table = data.report.table()
    assert (table["evaluated"], table["evaluated_and_trained"]) == (other, 1)


@pytest.mark.unit
def test_a_wrong_validation_file_is_one_sentence(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["One", "two"])
    config = TrainConfig(data=Data(path=path, eval_path=str(tmp_path / "none.jsonl")))
    with pytest.raises(FormatError, match=r"none\.jsonl: cannot be read"):
        dataset.encode(config, tokenizer, tokenizer.vocab_size)
    with pytest.raises(ConfigError, match=r"^data\.held_out_fraction is 0\.1, which has no effect where data\.eval_p"):
        TrainConfig(data=Data(path=path, eval_path=path, held_out_fraction=0.1))


@pytest.mark.unit
def test_several_validation_files_are_evaluated_on_together(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["One", "two", "three"])
    others = [write(tmp_path / "b.jsonl", ["two", "four"]), write(tmp_path / "c.jsonl", ["four, one", "two, four"])]
    data = dataset.encode(TrainConfig(data=Data(path=path, eval_path=others)), tokenizer, tokenizer.vocab_size)
    assert (len(data.training), len(data.held_out), data.report.evaluated) == (3, 4, ", ".join(others))
    data = dataset.encode(
        TrainConfig(data=Data(path=path, eval_path=others, max_examples=1)), tokenizer, tokenizer.vocab_size
    )
    assert (len(data.training), len(data.held_out)) == (1, 2)  # of each file


@pytest.mark.unit
def test_files_to_evaluate_on_have_no_weights(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["One", "two"])
    config = TrainConfig(data=Data(path=path, eval_path=[f"{path}:0.5", f"{tmp_path / 'b.jsonl'}:0.5"]))
    with pytest.raises(ConfigError, match=r"^data\.eval_path gives .*a\.jsonl the weight 0\.5, which an evaluation do"):
        dataset.encode(config, tokenizer, tokenizer.vocab_size)
