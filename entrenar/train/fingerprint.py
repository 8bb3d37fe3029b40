"""What decides the bits of a run: a resumed one must have the same, and is refused by name of what differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from entrenar._kernels import cpu
from entrenar.autograd import QuantizedTensor, Tensor
from entrenar.data import Batch, Sample
from entrenar.errors import ConfigError, FormatError
from entrenar.io.tokenizer import Tokenizer
from entrenar.models.api import LLaMAModel
from entrenar.train.config import TrainConfig

# What may differ when a run continues: it changes no bit, or (steps, schedule_steps, stopping) says how far to go. The
# precision is taken as it is in effect.
FREE = (
    *("steps", "epochs", "threads", "precision", "evaluate_every", "sample_every", "gradient_checkpointing"),
    *("early_stopping_patience", "early_stopping_threshold"),
    *("path", "eval_path", "format", "held_out_fraction", "max_examples", "schedule_steps"),
)


def fingerprint(
    config: TrainConfig,
    model: LLaMAModel,
    samples: Sequence[Sample],
    held_out: Sequence[Batch],
    fixed: Mapping[str, Any],
) -> dict[str, Any]:
    """Settings, shape, engine and version as values; frozen weights and examples, whole, as hashes."""
    sections = {name: getattr(config, name) for name in ("training", "lr_schedule", "data", "preference")}
    if config.adapter is not None:
        sections[config.adapter.section] = config.adapter
    settings = {
        f"{name}.{key}": value
        for name, section in sections.items()
        if section is not None
        for key, value in asdict(section).items()
        if key not in FREE
    }
    weights = [weight for _, weight in model.named_parameters()]
    values = {
        **settings,
        **{f"model.{key}": value for key, value in asdict(model.config).items()},
        "matmul precision": cpu.effective_precision(cpu.get_matmul_precision()),
        "SIMD tier": cpu.tier(),
        "dtype": ", ".join(sorted({w.dtype if isinstance(w, Tensor) else w.weight_type for w in weights})),
        "entrenar's version": _version(),
        "the base model": _frozen(model),
        **fixed,
        "the examples": of_examples(samples),
        "the held-out examples": _held_out(held_out),
    }
    return dict(json.loads(json.dumps(values, default=repr)))  # as it comes back from a file


def _version() -> str:
    try:
        return version("entrenar")
    except PackageNotFoundError:  # a checkout that is not installed
        return "unknown"


def _frozen(model: LLaMAModel) -> str:
    """SHA-256 over every byte of every frozen weight, each hashed by a thread (hashlib lets go of the GIL)."""

    def digest(item: tuple[str, Any]) -> bytes:
        name, weight = item
        arrays = weight.to_arrays() if isinstance(weight, QuantizedTensor) else {"": weight.numpy()}
        found = hashlib.sha256(f"{name} {weight.dtype} {weight.shape}".encode())
        for key, array in sorted(arrays.items()):
            found.update(f"{key} {array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return found.digest()

    frozen = [(name, weight) for name, weight in model.named_parameters() if not weight.requires_grad]
    with ThreadPoolExecutor(cpu.get_num_threads()) as pool:
        return hashlib.sha256(b"".join(pool.map(digest, frozen))).hexdigest()


def of_examples(samples: Sequence[Sample]) -> str:
    """A hash of every sample's tokens, marks and weights, in order."""
    data = hashlib.sha256()
    for sample in samples:
        data.update(sample.tokens.tobytes())
        data.update(sample.trained.tobytes())
        data.update(b"" if sample.weights is None else sample.weights.tobytes())
    return data.hexdigest()


def _held_out(batches: Sequence[Batch]) -> str:
    """The losses before and after are those of the same tokens."""
    data = hashlib.sha256()
    for batch in batches:
        data.update(batch.tokens.tobytes())
        data.update(batch.targets.tobytes())
        data.update(b"" if batch.weights is None else batch.weights.tobytes())
    return data.hexdigest()


def of_tokenizer(tokenizer: Tokenizer) -> str:
    """A hash of a tokenizer with its template."""
    return hashlib.sha256(f"{tokenizer.backend.to_str()}{tokenizer.chat_template}".encode()).hexdigest()


def check(directory: Path, found: Any, expected: Mapping[str, Any]) -> None:
    """ConfigError, naming the first difference, where a checkpoint's fingerprint is not that of this run."""
    if not isinstance(found, dict):
        raise FormatError(f"{directory}: says nothing of its settings; the checkpoint is damaged.")
    for key in dict.fromkeys((*expected, *found)):
        ours, theirs = expected.get(key), found.get(key)
        if ours == theirs:
            continue
        if key.startswith("the "):
            what = key.removeprefix("the ")
            other = f"other {what}" if what.endswith("s") else f"another {what}"
            raise ConfigError(f"{directory}: was written with {other}; resume with the same, or start anew.")
        raise ConfigError(
            f"{key} is {ours!r} and was {theirs!r} when {directory} was written; resume with the same, or start anew."
        )
