"""What a file takes of the memory for each of its records: a few bytes of arrays, and no object of Python."""

from __future__ import annotations

import csv
import importlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.data import DataLoader, ExampleFile, Sample, encoding, samples
from entrenar.data.preferences import PreferenceFile
from entrenar.train import data_check, dataset
from entrenar.train.config import Data, TrainConfig, Training
from entrenar.train.preference import PreferenceData, PreferenceLoader

FEW, MANY = 1_000, 9_000
SHORT = Sample(np.arange(8, dtype=np.int32), np.arange(8) > 3)


def rows(count: int) -> list[tuple[str, str, str]]:
    return [(f"{number}", "yes", "no") for number in range(count)]


def jsonl(folder: Path, count: int) -> Path:
    path = folder / f"{count}.jsonl"
    names = ("prompt", "completion", "rejected")
    path.write_text("".join(json.dumps(dict(zip(names[:2], row[:2], strict=True))) + "\n" for row in rows(count)))
    return path


def json_list(folder: Path, count: int) -> Path:
    path = folder / f"{count}.json"
    path.write_text(json.dumps([{"prompt": prompt, "completion": answer} for prompt, answer, _ in rows(count)]))
    return path


def table(folder: Path, count: int) -> Path:
    path = folder / f"{count}.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("prompt", "completion"), *[row[:2] for row in rows(count)]])
    return path


def parquet(folder: Path, count: int) -> Path:
    pyarrow, written = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    path, columns = folder / f"{count}.parquet", list(zip(*rows(count), strict=True))
    written.write_table(pyarrow.table({"prompt": columns[0], "completion": columns[1]}), path, row_group_size=1000)
    return path


def pairs(folder: Path, count: int) -> Path:
    path = folder / f"{count}.pairs.jsonl"
    names = ("prompt", "chosen", "rejected")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows(count)))
    return path


def bytes_a_record(write: Callable[[Path, int], Path], use: Callable[[Path], Any], folder: Path) -> tuple[float, float]:
    """(held, peak): by how much each grows with a record, as two files of unlike sizes show."""
    found = []
    for count in (FEW, MANY):
        path = write(folder, count)
        tracemalloc.start()
        try:
            kept = use(path)
            found.append(tracemalloc.get_traced_memory())
        finally:
            tracemalloc.stop()
        del kept
    held, peak = ((many - few) / (MANY - FEW) for few, many in zip(*found, strict=True))
    return held, peak


@pytest.fixture
def untokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every example is the same few tokens, of which few are in memory: what is measured is what stands beside them."""
    for module in (encoding, data_check):
        monkeypatch.setattr(module, "encoded", lambda *_: ("", SHORT))
    monkeypatch.setattr(encoding, "_other_prompt", lambda *_: "")
    for module in (dataset, data_check):
        monkeypatch.setattr(module, "check_vocabulary", lambda *_: None)
    monkeypatch.setattr(samples, "HELD_BYTES", 1 << 16)
    monkeypatch.setattr(samples, "WRITTEN_BYTES", 1 << 14)


class NoTokenizer:
    has_template = True

    def decode(self, tokens: list[int], **_: Any) -> str:
        return str(tokens)


@pytest.mark.memory
@pytest.mark.parametrize("write", [jsonl, json_list, table, parquet])
def test_the_index_of_a_file_is_a_place_a_record(write: Callable[[Path, int], Path], tmp_path: Path) -> None:
    if write is parquet:
        pytest.importorskip("pyarrow")
    held, peak = bytes_a_record(write, ExampleFile, tmp_path)
    assert held < 16 and peak < 32  # 8.5 of each, of Parquet none


@pytest.mark.memory
@pytest.mark.usefixtures("untokenized")
def test_a_run_holds_little_for_a_record(tmp_path: Path) -> None:
    def begun(path: Path) -> DataLoader:
        config = TrainConfig(Training(sequence_length=64), data=Data(path=str(path)))
        found: Any = dataset.encode(config, NoTokenizer(), 280)  # type: ignore[arg-type]
        loader = DataLoader(found.training, 2, 64)
        loader.next_batch()
        return loader

    held, peak = bytes_a_record(jsonl, begun, tmp_path)
    assert held < 36 and peak < 100


@pytest.mark.memory
@pytest.mark.usefixtures("untokenized")
def test_a_check_holds_little_for_a_record(tmp_path: Path) -> None:
    def checked(path: Path) -> data_check.DataCheck:
        return data_check.check_data(Data(path=str(path)), NoTokenizer(), 280, 64)  # type: ignore[arg-type]

    held, peak = bytes_a_record(jsonl, checked, tmp_path)
    assert held < 16 and peak < 76


@pytest.mark.memory
def test_preferences_take_little_for_a_record(tmp_path: Path) -> None:
    held, peak = bytes_a_record(pairs, lambda path: PreferenceFile(path, labelled=False), tmp_path)
    assert held < 48 and peak < 80

    def shuffled(path: Path) -> PreferenceLoader:
        answers = samples.Samples([SHORT] * int(path.stem.split(".")[0]))
        labels = np.ones(len(answers), bool)
        return PreferenceLoader(PreferenceData(answers, labels, 1, shifts=False), 2, 64, seed=0, pad_id=0)

    held, peak = bytes_a_record(pairs, shuffled, tmp_path)
    assert held < 5 * len(SHORT) + 70
