"""Samples in memory and in a file: the same, no name left, bounded memory, and a full disk in one sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from entrenar.data import DataLoader, Sample, Samples, evaluation_batches
from entrenar.data import samples as module
from entrenar.errors import FormatError
from tests.train.builders import ROOT, SMALL, config_for, quiet, write_examples, write_model


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", 500)
    monkeypatch.setattr(module, "WRITTEN_BYTES", 100)
    monkeypatch.setattr(module, "READ_BYTES", 300)


def some(count: int, seed: int = 0) -> list[Sample]:
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        size = int(rng.integers(0, 30))
        trained = rng.random(size) < 0.5
        trained[:1] = False
        weights = rng.random(size).astype(np.float32) if index % 4 == 1 else None
        made.append(Sample(rng.integers(0, 1 << 20, size).astype(np.int32), trained, index % 3 == 0, weights))
    return made


def same(ours: Sample, theirs: Sample) -> bool:
    if ours.weights is None or theirs.weights is None:
        alike = ours.weights is theirs.weights
    else:
        alike = np.array_equal(ours.weights, theirs.weights)
    marks = ours.truncated == theirs.truncated and np.array_equal(ours.trained, theirs.trained)
    return alike and marks and np.array_equal(ours.tokens, theirs.tokens)


@pytest.mark.unit
def test_what_is_on_disk_is_what_was_put_in(on_disk: None, tmp_path: Path) -> None:
    rows, samples = some(60), Samples(folder=tmp_path)
    for index, row in enumerate(rows):
        samples.append(row)
        assert same(samples[index], row) and same(samples[index // 2], rows[index // 2])
    assert samples._file is not None and list(tmp_path.iterdir()) == []
    assert all(same(ours, theirs) for ours, theirs in zip(samples, rows, strict=True))
    assert samples.lengths.tolist() == [len(row) for row in rows]
    assert same(samples[-1], rows[-1]) and [len(s) for s in samples[3:7]] == [len(row) for row in rows[3:7]]
    assert samples.nbytes < 100 + 9 * 61 + 8
    with pytest.raises(IndexError):
        samples[60]
    elsewhere = Samples(rows, tmp_path / "none")  # the system's folder
    assert elsewhere._file is not None and same(elsewhere[5], rows[5])


@pytest.mark.unit
@pytest.mark.parametrize("packing", [False, True])
def test_batches_of_samples_on_disk_are_those_of_a_list(packing: bool, on_disk: None, tmp_path: Path) -> None:
    rows = [sample for sample in some(50) if len(sample)]
    loaders = [DataLoader(given, 3, 24, seed=5, packing=packing) for given in (rows, Samples(rows, tmp_path))]
    batches = [evaluation_batches(given, 3, 24, packing) for given in (rows, Samples(rows, tmp_path))]
    pairs = [[loader.next_batch() for _ in range(40)] for loader in loaders] + [list(each) for each in batches]
    for ours, theirs in (pairs[:2], pairs[2:]):
        for one, other in zip(ours, theirs, strict=True):
            assert np.array_equal(one.tokens, other.tokens) and np.array_equal(one.targets, other.targets)
            assert one.trained_weight == other.trained_weight
    assert loaders[0].truncated == loaders[1].truncated and loaders[0].trained_tokens == loaders[1].trained_tokens
    assert len(batches[1]) == len(list(batches[1])) and batches[1][-1].tokens.shape == list(batches[0])[-1].tokens.shape


@pytest.mark.unit
def test_a_run_has_the_same_bits_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = write_model(tmp_path / "model"), write_examples(tmp_path / "data.jsonl")
    found, names = [], []
    for name, held in (("a", module.HELD_BYTES), ("b", 500)):
        monkeypatch.setattr(module, "HELD_BYTES", held)
        result, _ = quiet(model, config_for(data, tmp_path / name, SMALL))
        found.append(((result.output / "adapter_model.safetensors").read_bytes(), result.before, result.after))
        names.append(sorted(path.name for path in (tmp_path / name).iterdir()))
    assert found[0] == found[1] and names[0] == names[1]


@pytest.mark.unit
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device of Linux that is always full")
def test_a_full_disk_is_one_sentence(on_disk: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    monkeypatch.setattr(module.tempfile, "TemporaryFile", lambda dir, buffering: full.open("wb", buffering=buffering))
    with pytest.raises(FormatError, match=rf"{tmp_path}: cannot be written \(No space left on device\); make room"):
        Samples(some(60), tmp_path)


@pytest.mark.unit
def test_a_file_that_is_cut_off_is_no_sample(on_disk: None, tmp_path: Path) -> None:
    samples = Samples(some(60), tmp_path)
    assert samples._file is not None
    os.ftruncate(samples._file.fileno(), 10)
    with pytest.raises(FormatError, match="were cut off while the run read them"):
        samples[20]


@pytest.mark.memory
def test_memory_does_not_grow_with_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HELD_BYTES", 1 << 20)
    tokens, trained = np.arange(5000, dtype=np.int32), np.arange(5000) > 10

    def rows(count: int) -> Iterator[Sample]:
        return (Sample(tokens, trained) for _ in range(count))

    peaks = []
    for count in (200, 2000):  # 5 and 50 MB
        tracemalloc.start()
        samples = Samples(rows(count), tmp_path)
        loader = DataLoader(samples, 2, 5000)
        loader.next_batch()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(samples) == count and samples.lengths.sum() == 5000 * count
    assert peaks[1] - peaks[0] < 300 * 1800 and peaks[1] < 6 << 20


CHILD = """
import json, resource, sys
from pathlib import Path
from entrenar.data import samples
from entrenar.models.checkpoint import Checkpoint
from entrenar.train import dataset, run
from entrenar.train.config import Checkpointing, Data, TrainConfig, Training

model, data, held = sys.argv[1], sys.argv[2], int(sys.argv[3])
samples.HELD_BYTES = held
config = TrainConfig(
    training=Training(sequence_length=512), data=Data(path=data), checkpointing=Checkpointing(str(Path(data).parent))
)
tokenizer = Checkpoint.open(model).tokenizer()
tokenizer.encode("some words to begin with")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = dataset.encode(config, tokenizer, 280)
loader, batches = run.batches(config, found.training, found.held_out, 0)
tokens = sum(batch.tokens.size for batch in [*batches, *loader.next_batches(20)])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = len(loader.samples)
print(json.dumps({"grown": 1024 * (peak - before), "tokens": found.report.training.tokens, "rows": rows}))
"""


@pytest.mark.memory
@pytest.mark.parametrize(
    ("size", "held"), [(3 << 20, 1 << 20), pytest.param(120 << 20, 16 << 20, marks=pytest.mark.slow)]
)
def test_a_file_takes_no_memory_beyond_its_index(size: int, held: int, tmp_path: Path) -> None:
    model, data = write_model(tmp_path / "model"), tmp_path / "data.jsonl"
    rng, written = np.random.default_rng(0), 0
    words = ["".join(rng.choice(list("abcdefgh"), 5)) for _ in range(500)]
    with data.open("w") as file:
        while written < size:
            written += file.write(json.dumps({"text": " ".join(rng.choice(words, 600))}) + "\n")
    command = [sys.executable, "-c", CHILD, str(model), str(data), str(held)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    made = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=1800)
    assert made.returncode == 0, made.stderr
    found = json.loads(made.stdout)
    assert found["tokens"] > size / 12
    assert found["grown"] < 2 * held + 300 * found["rows"] + (24 << 20)
