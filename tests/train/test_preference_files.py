"""Preferences from CSV and Parquet as pandas and pyarrow write them, and what a preference run does with options."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from entrenar.data import samples
from entrenar.data.preferences import PreferenceFile
from entrenar.errors import ConfigError, FormatError
from entrenar.train import TrainConfig
from entrenar.train.config import Data, Preferences, Training
from tests.train.builders import SMALL, config_for, metrics, quiet, write_model, write_records
from tests.train.test_preference import write_preferences

pytestmark = pytest.mark.unit
USER = [{"role": "user", "content": 'Two, "quoted"\nwords'}]
PAIRS = {
    "texts": [{"prompt": f"Is {i}, odd?", "chosen": f'It is "{i % 2}".', "rejected": "No\nidea."} for i in range(5)],
    "no prompt": [{"chosen": f"Number {i} is odd", "rejected": f"Number {i} is even"} for i in range(5)],
    "messages": [
        {
            "prompt": USER,
            "chosen": [{"role": "assistant", "content": f"yes {i}"}],
            "rejected": [{"role": "assistant", "content": "no"}],
        }
        for i in range(5)
    ],
    "whole conversations": [
        {
            "chosen": [*USER, {"role": "assistant", "content": f"yes {i}"}],
            "rejected": [*USER, {"role": "assistant", "content": "no"}],
        }
        for i in range(5)
    ],
}
LABELLED = {
    "texts": [{"prompt": f"Is {i} odd?", "completion": f"It is {i}.", "label": i % 2 == 1} for i in range(5)],
    "messages": [
        {"prompt": USER, "completion": [{"role": "assistant", "content": f"{i}"}], "label": i % 2 == 1}
        for i in range(5)
    ],
}
CASES = [(PAIRS[name], False) for name in PAIRS] + [(LABELLED[name], True) for name in LABELLED]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize(("records", "labelled"), CASES)
def test_tables_hold_what_json_holds(
    ending: str, records: list[dict[str, Any]], labelled: bool, tmp_path: Path
) -> None:
    expected = PreferenceFile(write_records(tmp_path / "a.jsonl", records), labelled=labelled)
    found = PreferenceFile(write_records(tmp_path / f"a.{ending}", records), labelled=labelled)
    assert list(found) == list(expected) and len(found) == 5
    assert [p.label for p in found] == [p.label for p in expected]
    assert len(PreferenceFile(tmp_path / f"a.{ending}", labelled=labelled, most=2)) == 2


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_pairs_are_unpaired_for_labels_as_in_trl(ending: str, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    trl = pytest.importorskip("trl.data_utils")
    theirs = trl.unpair_preference_dataset(datasets.Dataset.from_list(PAIRS["texts"]))
    found = PreferenceFile(write_records(tmp_path / f"a.{ending}", PAIRS["texts"]), labelled=True)
    ours = [(*(message["content"] for message in p.answers[0].messages), p.label) for p in found]
    assert ours == [(row["prompt"], row["completion"], row["label"]) for row in theirs]
    assert len({p.text for p in found}) == 5  # both answers of a pair are on one side


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("change", "labelled", "message"),
    [
        ({"chosen": None}, False, r"(line 3|row 2): has no chosen, expected"),
        ({"chosen": "", "rejected": ""}, False, r"(line 3|row 2): has no chosen and no rejected, expected"),
        ({"rejected": "  "}, False, r"(line 3|row 2): content is '  ', expected non-empty text"),
        ({"label": "maybe"}, True, r"(line 3: label is 'maybe'|row 1: label is 'False'), expected true or false"),
        ({"label": None}, True, r"(line 3|row 2): label is None, expected true or false"),
        ({"completion": None}, True, r"(line 3|row 2): has no prompt or no completion"),
        ({"prompt": "\t"}, True, r"(line 3|row 2): content is '\\t', expected non-empty text"),
        ({"history": "[1]"}, False, r"(line 3|row 2): has a history, which is not read"),
        ({"images": "a.png"}, True, r"(line 3|row 2): has images, which is not read"),
    ],
)
def test_a_row_that_is_none_is_named(
    ending: str, change: dict[str, Any], labelled: bool, message: str, tmp_path: Path
) -> None:
    base = (LABELLED if labelled else PAIRS)["texts"]
    records: list[dict[str, Any]] = [dict(record) for record in base]
    if isinstance(change.get("label"), str):  # a column of Parquet has one type
        records = [record | {"label": str(record["label"])} for record in records]
    if not labelled:
        records = [record | {"chosen": record["chosen"].replace("\n", " "), "rejected": "No."} for record in records]
    records = [dict.fromkeys(change) | record for record in records]  # a table has the columns of its first row
    records[1] |= change
    with pytest.raises(FormatError, match=rf"a\.{ending}, {message}"):
        PreferenceFile(write_records(tmp_path / f"a.{ending}", records), labelled=labelled)


def test_files_that_hold_no_preferences_are_refused(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "a.csv"
    pandas.DataFrame(PAIRS["messages"]).to_csv(path, index=False)
    with pytest.raises(FormatError, match="line 2: prompt is a list in the notation of Python"):
        PreferenceFile(path, labelled=False)
    (tmp_path / "b.csv").write_text("prompt,chosen,rejected\n")
    with pytest.raises(FormatError, match=r"b\.csv: holds no preferences"):
        PreferenceFile(tmp_path / "b.csv", labelled=False)
    (tmp_path / "c.txt").write_text("A text.")
    with pytest.raises(FormatError, match=r"c\.txt: has no chosen and no rejected"):
        PreferenceFile(tmp_path / "c.txt", labelled=False)
    for cell, label in (("true", True), ("FALSE", False), ("1", True), ("0", False), (" True ", True)):
        (tmp_path / "d.csv").write_text(f"prompt,completion,label\na,b,{cell}\n")
        assert PreferenceFile(tmp_path / "d.csv", labelled=True)[0].label is label
    (tmp_path / "e.csv").write_text('prompt,chosen,rejected\n[1] is what?,[a],"[{""b"": 1}"\n')
    answers = PreferenceFile(tmp_path / "e.csv", labelled=False)[0].answers
    assert [answer.messages[-1]["content"] for answer in answers] == ["[a]", '[{"b": 1}']


def test_keys_that_nothing_reads_are_counted_once_a_pair(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "a.jsonl"
    write_records(data, [record | {"score_chosen": 1.5} for record in PAIRS["texts"]])
    result, said = quiet(model, config_for(data, tmp_path / "run", preference=Preferences("dpo")))
    assert "the key 'score_chosen' of 5 records is not used" in said
    assert json.loads((result.output.parent / "summary.json").read_text())["data"]["unused_keys"] == {"score_chosen": 5}


# ---------------------------------------------------------------------- options
@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


SHORT = replace(SMALL, steps=2, batch_size=2)
# A value of each option of [data] and [training] that a preference run acts on, and what differs with it.
ACTS: dict[str, tuple[Any, str]] = {
    "data.path": ("other", "weights"),
    "data.eval_path": ("other", "evaluation"),
    "data.held_out_fraction": (0.5, "evaluation"),
    "data.max_examples": (10, "weights"),
    "training.steps": (3, "weights"),
    "training.epochs": (1.0, "weights"),
    "training.batch_size": (3, "weights"),
    "training.gradient_accumulation": (2, "weights"),
    "training.sequence_length": (32, "weights"),
    "training.optimizer": ("sgd", "weights"),
    "training.learning_rate": (0.02, "weights"),
    "training.weight_decay": (0.5, "weights"),
    "training.loraplus_lr_ratio": (4.0, "weights"),
    "training.beta1": (0.5, "weights"),
    "training.beta2": (0.5, "weights"),
    "training.eps": (0.1, "weights"),
    "training.max_grad_norm": (1e-3, "weights"),
    "training.seed": (4, "weights"),
    "training.precision": ("highest", "weights"),
    "training.evaluate_every": (1, "metrics"),
    "training.sample_every": (1, "said"),
}
# Those that other tests hold, with where; they are read by what all runs share.
SHARED = {
    *("threads", "decay_norms", "loraplus_lr_embedding", "momentum", "early_stopping_patience"),
    *("early_stopping_threshold", "continue_adapter", "gradient_checkpointing"),
}
REFUSED = {"format": "alpaca", "packing": False, "train_on_prompt": True, "answers": "last", "too_long": "drop"}


def test_every_option_is_acted_on_or_refused() -> None:
    names = {f"data.{f.name}" for f in fields(Data)} | {f"training.{f.name}" for f in fields(Training)}
    assert names <= set(ACTS) | {f"training.{name}" for name in SHARED} | {f"data.{name}" for name in REFUSED}


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
@pytest.mark.parametrize("name", REFUSED)
def test_options_that_preferences_do_not_use_are_refused(name: str, method: str) -> None:
    data = Data(path="a.jsonl", **{name: REFUSED[name]})
    said = str(REFUSED[name]).lower() if isinstance(REFUSED[name], bool) else REFUSED[name]
    with pytest.raises(ConfigError, match=rf"data\.{name} is {said}, which {method} does not use; leave it out"):
        TrainConfig(data=data, training=SHORT, preference=Preferences(method))


def outcome(model: Path, config: TrainConfig) -> dict[str, Any]:
    """What a run leaves: the bits of its adapter, its evaluation, the rows of metrics.csv, what it printed."""
    result, said = quiet(model, config)
    return {
        "weights": (result.output / "adapter_model.safetensors").read_bytes(),
        "evaluation": (result.before, result.after),
        "metrics": [row["held_out_loss"] for row in metrics(result.output.parent)],
        "said": said.count("Step 1: "),
    }


@pytest.fixture(scope="module")
def plain(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("plain")
    data = write_preferences(folder / "preferences.jsonl", "dpo")
    return outcome(model, config_for(data, folder / "run", SHORT, preference=Preferences("dpo")))


@pytest.mark.parametrize("option", ACTS)
def test_options_change_a_preference_run(option: str, model: Path, plain: dict[str, Any], tmp_path: Path) -> None:
    value, differs = ACTS[option]
    section, name = option.split(".")
    data = write_preferences(tmp_path / "preferences.jsonl", "dpo")
    if value == "other":
        value = str(write_records(tmp_path / "other.csv", PAIRS["texts"]))
    config = config_for(data, tmp_path / "run", SHORT, preference=Preferences("dpo"))
    changes = {name: value} | ({"steps": Training().steps} if name == "epochs" else {})
    if name == "eval_path":
        changes["held_out_fraction"] = Data.held_out_fraction
    config = replace(config, **{section: replace(getattr(config, section), **changes)})
    assert outcome(model, config)[differs] != plain[differs]


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_an_epoch_is_one_pass_over_the_pairs(method: str, model: Path, tmp_path: Path) -> None:
    data = write_preferences(tmp_path / "preferences.jsonl", method)
    training = replace(SHORT, steps=Training().steps, epochs=1.0, batch_size=4)
    config = config_for(data, tmp_path / "run", training, preference=Preferences(method))
    quiet(model, replace(config, data=replace(config.data, held_out_fraction=0.0)))
    count = 24 if method == "dpo" else 48
    assert len(metrics(tmp_path / "run")) == math.ceil(count / 4)


def test_a_file_of_its_own_to_evaluate_on(model: Path, tmp_path: Path) -> None:
    data = write_preferences(tmp_path / "preferences.jsonl", "dpo")
    others = write_records(
        tmp_path / "others.parquet", [json.loads(line) for line in data.read_text().splitlines()[:3]]
    )
    base = config_for(data, tmp_path / "run", SHORT, preference=Preferences("dpo"))
    result, said = quiet(model, replace(base, data=Data(path=str(data), eval_path=str(others))))
    assert result.before is not None and result.before.loss == pytest.approx(math.log(2), rel=1e-6)
    assert "others.parquet: 6 of its 6 samples" in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())["data"]
    assert summary["evaluated"] == str(others) and summary["training"]["samples"] == 48


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_run_over_answers_on_disk_has_the_same_bits(
    method: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [json.loads(line) for line in write_preferences(tmp_path / "a.jsonl", "dpo").read_text().splitlines()]
    write_records(tmp_path / "b.parquet", records[:10])
    write_records(tmp_path / "c.csv", records[10:])
    found = []
    for name, held in (("x", samples.HELD_BYTES), ("y", 200)):
        monkeypatch.setattr(samples, "HELD_BYTES", held)
        config = config_for(tmp_path / "a.jsonl", tmp_path / name, SHORT, preference=Preferences(method))
        several = [str(tmp_path / "b.parquet"), str(tmp_path / "c.csv")]
        found.append(outcome(model, replace(config, data=Data(path=several, held_out_fraction=0.3))))
    assert found[0] == found[1]
