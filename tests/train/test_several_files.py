"""A run over several files: joined or drawn by weight, checked before training, resumed to the same bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from entrenar.errors import ConfigError, FormatError
from entrenar.io.tokenizer import Tokenizer
from entrenar.models.config import LLaMAConfig
from entrenar.train import dataset, pretrain
from entrenar.train.config import Data, LRSchedule, Preferences, TrainConfig
from entrenar.train.memory import data_bytes
from entrenar.train.preference_data import encode as encode_preferences
from tests.train.builders import SMALL, config_for, quiet, run_entrenar, write_examples, write_model


def write(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    whole = write_examples(tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    for name, lines in (("a.jsonl", whole[:10]), ("b.jsonl", whole[10:])):
        (tmp_path / name).write_text("".join(lines))
    return [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["one two three four five six"], 280)


def weighted(files: list[str], output: Path, steps: int) -> TrainConfig:
    config = config_for(Path(), output, replace(SMALL, steps=steps), lr_schedule=LRSchedule("constant", warmup_steps=0))
    config.data = Data(path=[f"{files[0]}:3", f"{files[1]}:1"], packing=False, held_out_fraction=0.2)
    config.checkpointing = replace(config.checkpointing, minutes=10)
    return config


@pytest.mark.unit
def test_a_weighted_run_resumes_to_the_same_bits_and_says_its_shares(
    model: Path, files: list[str], tmp_path: Path
) -> None:
    whole, shown = quiet(model, weighted(files, tmp_path / "whole", 9))
    quiet(model, weighted(files, tmp_path / "parts", 4))
    rest = weighted(files, tmp_path / "parts", 9)
    rest.checkpointing = replace(rest.checkpointing, resume=True)
    resumed, _ = quiet(model, rest)
    name = "adapter_model.safetensors"
    assert (resumed.output / name).read_bytes() == (whole.output / name).read_bytes()
    table = json.loads((tmp_path / "whole" / "summary.json").read_text())["data"]
    assert [(file["path"], file["share"]) for file in table["files"]] == [(files[0], 0.75), (files[1], 0.25)]
    assert sum(file["samples"] for file in table["files"]) == table["training"]["samples"]
    small, total = table["files"][0]["samples"], table["training"]["samples"]
    times = f"each of its {small:,} comes {0.75 * total / small:.2f} times an epoch of {total:,}."
    assert f"a.jsonl: 75.0 % of the samples that are drawn; {times}" in " ".join(shown.split())
    other = weighted(files, tmp_path / "parts", 12)
    other.data.path = [f"{files[0]}:2", f"{files[1]}:1"]
    other.checkpointing = rest.checkpointing
    with pytest.raises(ConfigError, match="was written with other weights of the files; resume with the same"):
        quiet(model, other)


@pytest.mark.unit
def test_files_without_weights_are_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = [f"one two {number}" for number in range(12)]
    files = [write(tmp_path / "a.jsonl", texts[:5]), write(tmp_path / "b.jsonl", texts[5:])]
    both = write(tmp_path / "c.jsonl", texts)
    found = []
    for path in (files, both):
        config = TrainConfig(data=Data(path=path, held_out_fraction=0))
        data = dataset.encode(config, tokenizer, tokenizer.vocab_size)
        assert data.mix is None and not list(data.report.remarks())
        found.append([sample.tokens.tolist() for sample in data.training])
    assert found[0] == found[1]
    named = table_of(files, tokenizer)
    assert named["source"] == ", ".join(files) and [file["samples"] for file in named["files"]] == [5, 7]
    assert "files" not in table_of(both, tokenizer)


def table_of(path: str | list[str], tokenizer: Tokenizer) -> dict:
    config = TrainConfig(data=Data(path=path, held_out_fraction=0))
    return dataset.encode(config, tokenizer, tokenizer.vocab_size).report.table()


@pytest.mark.unit
def test_each_file_holds_out_some_and_max_examples_is_of_each(tokenizer: Tokenizer, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.jsonl", [f"{name} {n}" for n in range(20)]) for name in "ab"]
    config = TrainConfig(data=Data(path=files, held_out_fraction=0.1, max_examples=10))
    data = dataset.encode(config, tokenizer, tokenizer.vocab_size)
    assert len(data.training) + len(data.held_out) == 20
    _, held_out = dataset.split_examples(config)
    assert {example.file for example in held_out} == {0, 1}
    small = data_bytes(config)
    assert (
        small
        == min(small, data_bytes(TrainConfig(data=Data(path=files))))
        > data_bytes(TrainConfig(data=Data(path=files[0], max_examples=1)))
    )


@pytest.mark.unit
def test_a_wrong_list_is_one_sentence(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert Data(path=["a.jsonl"]).path == "a.jsonl"
    with pytest.raises(ConfigError, match=r"^data\.path is an empty list, expected files"):
        Data(path=[])
    with pytest.raises(ConfigError, match=r"^data\.path holds an empty path"):
        Data(path=["a", ""])
    path, bad = write(tmp_path / "a.jsonl", ["one", "two"]), str(tmp_path / "bad.jsonl")
    Path(bad).write_text('{"text": "three"}\n{"text": 4}\n')
    with pytest.raises(FormatError, match=r"bad\.jsonl, line 2: text is 4"):
        dataset.encode(TrainConfig(data=Data(path=[path, bad])), tokenizer, tokenizer.vocab_size)
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"prompt": "one " * 200, "completion": "two"}) + "\n")
    weights = Data(path=[f"{path}:1", f"{long}:1"], held_out_fraction=0)
    config = TrainConfig(training=replace(SMALL, sequence_length=64), data=weights)
    with pytest.raises(ConfigError, match=r"long\.jsonl: has the weight 1 and no example that is trained, since all"):
        dataset.encode(config, tokenizer, tokenizer.vocab_size)


@pytest.mark.unit
def test_preferences_are_joined_and_have_no_weights(tokenizer: Tokenizer, tmp_path: Path) -> None:
    files = []
    for name in "ab":
        path = tmp_path / f"{name}.jsonl"
        pairs = [{"prompt": f"{name} {n}", "chosen": "one", "rejected": "two"} for n in range(4)]
        path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
        files.append(str(path))
    config = TrainConfig(data=Data(path=files, held_out_fraction=0.25), preference=Preferences(method="dpo"))
    sides = encode_preferences(config, tokenizer, tokenizer.vocab_size)
    assert sides.report.training.examples + sides.report.held_out.examples == 16
    assert sides.report.held_out.examples == 4  # two answers of a pair of each file
    config.data.path = [f"{path}:1" for path in files]
    with pytest.raises(ConfigError, match=r"a\.jsonl the weight 1, which dpo does not use; leave the weights out\."):
        encode_preferences(config, tokenizer, tokenizer.vocab_size)


@pytest.mark.unit
def test_training_from_scratch_has_no_weights() -> None:
    with pytest.raises(ConfigError, match="which training from scratch does not use; leave the weights out"):
        pretrain(LLaMAConfig(), TrainConfig(data=Data(path=["a:1", "b:2"])))


@pytest.mark.unit
def test_the_flag_takes_several_and_the_written_toml_runs_again(model: Path, files: list[str], tmp_path: Path) -> None:
    given = ["--data", f"{files[0]}:3", f"{files[1]}:1", "--steps", "2", "--sequence-length", "64"]
    for number, words in enumerate((given, ["--config", tmp_path / "0" / "config.toml"])):
        ended = run_entrenar("finetune", "--model", model, *words, "--output", tmp_path / str(number))
        assert ended.returncode == 0, ended.stderr
    weights = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in "01"]
    assert weights[0] == weights[1]
    config = TrainConfig.from_file(tmp_path / "0" / "config.toml")
    assert config.data.path == [f"{files[0]}:3", f"{files[1]}:1"]
    ended = run_entrenar("data", "check", "--data", *given[1:3], "--model", model, "--json")
    found = json.loads(ended.stdout)
    assert found["records"] == sum(file["samples"] for file in found["files"])
    assert [file["share"] for file in found["files"]] == [0.75, 0.25]
    ended = run_entrenar("evaluate", "--data", *files, "--model", model)
    assert ended.returncode == 0, ended.stderr
