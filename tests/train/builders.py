"""Small runs for the tests: a model, random samples, and the trainer over them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from entrenar.adapters.base import AdapterConfig
from entrenar.data import Batch, DataLoader, Sample, evaluation_batches
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import LoRAConfig
from entrenar.train import Result, TrainConfig, Trainer, finetune
from entrenar.train.callbacks import Callback
from entrenar.train.config import Checkpointing, Data, LRSchedule, Training

ROOT = Path(__file__).parents[2]
LENGTH = 24
SHAPE = LLaMAConfig(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.1,
)


def samples(count: int = 20, seed: int = 0, vocab_size: int = SHAPE.vocab_size) -> list[Sample]:
    """Random tokens of random lengths; the first few of each are a prompt."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        size = int(rng.integers(6, LENGTH + 1))
        trained = np.arange(size) >= rng.integers(1, 5)
        made.append(Sample(rng.integers(0, vocab_size, size).astype(np.int32), trained))
    return made


def run_config(
    directory: Path | str,
    *,
    adapter: AdapterConfig | None = None,
    every: int = 0,
    resume: bool = False,
    minutes: float = 0,
    keep: int = 2,
    overwrite: bool = False,
    **training: Any,
) -> TrainConfig:
    """Six short steps with a constant learning rate, unless said otherwise."""
    schedule = training.pop("lr_schedule", LRSchedule(name="constant", warmup_steps=0))
    values: dict[str, Any] = {"steps": 6, "batch_size": 2, "sequence_length": LENGTH, "learning_rate": 1e-2, "seed": 3}
    return TrainConfig(
        training=Training(**(values | training)),
        lr_schedule=schedule,
        checkpointing=Checkpointing(str(directory), every, resume, minutes, keep, overwrite),
        adapter=adapter,
    )


def trainer_of(config: TrainConfig, *, data_seed: int = 0, **options: Any) -> Trainer:
    """A trainer over `samples`, its model drawn from the configuration's seed."""
    t = config.training
    model = LLaMAModel(SHAPE, seed=7)
    if config.adapter is not None:
        config.adapter.apply(model, t.seed)
    loader = DataLoader(samples(seed=data_seed), t.batch_size, t.sequence_length, seed=t.seed)
    return Trainer(model, config, loader, held_out_batches(), **options)


class Calls(Callback):
    """Calls a function with what a hook says: `Calls(on_step=print)`."""

    def __init__(self, **hooks: Callable[[Any], object]) -> None:
        for name, function in hooks.items():
            assert hasattr(Callback, name)
            setattr(self, name, lambda trainer, *said, function=function: function(*said))


def listen(trainer: Trainer, **hooks: Callable[[Any], object]) -> None:
    """Add functions as hooks of a callback of `trainer`, after its own callbacks."""
    trainer.callbacks = [*trainer.callbacks, Calls(**hooks)]


def held_out_batches() -> list[Batch]:
    return list(evaluation_batches(samples(4, seed=9), 2, LENGTH))


def weights_hash(trainer: Trainer) -> str:
    """Of every bit of the trained weights."""
    digest = hashlib.sha256()
    for name, tensor in trainer.parameters:
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def seal(directory: Path) -> None:
    """Give a checkpoint the checksums of its files as they are."""
    names = [name for name in ("state.json", "state.safetensors") if (directory / name).exists()]
    lines = [f"{hashlib.sha256((directory / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (directory / "SHA256SUMS").write_text("".join(lines))


def losses(trainer: Trainer) -> list[str]:
    """The losses and gradient norms of a run, to the last bit."""
    return [f"{report.loss.hex()} {report.grad_norm.hex()}" for report in trainer.reports]


DROPOUT = LoRAConfig(rank=4, alpha=8.0, dropout=0.3, target_modules=["all-linear"])


# ---------------------------------------------------------------------- files
ADDITIONS = [(a, b) for a in range(8) for b in range(8)]


def write_examples(path: Path) -> Path:
    """64 prompts and answers about additions, as JSON Lines."""
    with path.open("w") as file:
        for a, b in ADDITIONS:
            record = {"prompt": f"What is {a} plus {b}?", "completion": f"{a} plus {b} is {a + b}, and that is all."}
            file.write(json.dumps(record) + "\n")
    return path


def write_model(directory: Path, family: str = "llama", **changes: Any) -> Path:
    """A Hugging Face directory: a small random model with a tokenizer of its own; `changes` are fields of its shape."""
    texts = [f"What is {a} plus {b}? {a} plus {b} is {a + b}, and that is all." for a, b in ADDITIONS]
    tokenizer = Tokenizer.train(texts, 280)
    sizes = {"vocab_size": 280, "intermediate_size": 128, "max_position_embeddings": 128}
    shape = replace(SHAPE, family=family, **(sizes | changes))
    LLaMAModel(replace(shape, eos_token_id=tokenizer.eos_id), seed=1).save_pretrained(directory)
    tokenizer.save(directory)
    return directory


def run_example(name: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run an example as a user does; the environment is this process's, with one thread unless said otherwise."""
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=variables, check=False, timeout=600)


def entrenar_command(*words: str | Path) -> list[str]:
    """The console script as an installer writes it, from what pyproject.toml says."""
    found = re.search(r'^entrenar = "([\w.]+):(\w+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    program = f"import sys; sys.argv[0] = 'entrenar'; from {found[1]} import {found[2]}; sys.exit({found[2]}())"
    return [sys.executable, "-c", program, *map(str, words)]


def run_entrenar(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `entrenar` as `run_example` runs an example."""
    variables = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"} | environment
    return subprocess.run(
        entrenar_command(*words), capture_output=True, text=True, env=variables, check=False, timeout=600
    )


def metrics(directory: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    with (directory / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------- runs in this process
SMALL = Training(steps=4, batch_size=2, sequence_length=64, learning_rate=1e-2)


def config_for(data: Path, output: Path, training: Training = SMALL, **sections: object) -> TrainConfig:
    """A short LoRA run over a file of examples."""
    defaults: dict[str, object] = {"adapter": LoRAConfig(rank=4, target_modules=["all-linear"])}
    return TrainConfig(
        training=training,
        data=Data(path=str(data), held_out_fraction=0.2),
        checkpointing=Checkpointing(str(output)),
        **(defaults | sections),  # type: ignore[arg-type]
    )


def quiet(model: Path, config: TrainConfig, **options: str) -> tuple[Result, str]:
    """The result of a run and what it printed."""
    out = io.StringIO()
    result = finetune(model, config, console=Console(file=out, width=200), **options)
    return result, out.getvalue()


def write_records(path: Path, records: list[dict[str, Any]]) -> Path:
    """The records in a file of the kind that its ending says, tables as pandas and pyarrow write them."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1))
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(records), path, row_group_size=2)
    else:
        pandas = pytest.importorskip("pandas")
        cells = [{k: json.dumps(v) if isinstance(v, list) else v for k, v in record.items()} for record in records]
        pandas.DataFrame(cells).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path
