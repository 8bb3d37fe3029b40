"""Checkpoints of a run: trained weights, optimizer, schedule, random state and data position, written as a whole.

`state.json` holds plain values, `state.safetensors` the arrays, all float32; nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from entrenar.autograd import QuantizedTensor, random
from entrenar.errors import ConfigError, EntrenarError, FormatError, NumericsError
from entrenar.io.atomic import atomic_directory
from entrenar.io.safetensors import open_safetensors, save_safetensors
from entrenar.train.diagnose import first_nonfinite_weight
from entrenar.train.evaluate import Evaluation
from entrenar.train.step import StepReport

if TYPE_CHECKING:
    from entrenar.train.trainer import Trainer

VALUES, ARRAYS = "state.json", "state.safetensors"
# What may differ when a run continues: it changes no bit, or (steps) says how far to go.
FREE = ("steps", "threads", "evaluate_every", "gradient_checkpointing", "path", "held_out_fraction", "max_examples")
FINGERPRINT_BYTES = 1 << 16  # of each frozen weight: enough to tell two bases apart


def identity(trainer: Trainer) -> dict[str, Any]:
    """What decides the bits of a run: its settings, its frozen weights and its examples, the latter two as hashes."""
    config = trainer.config
    sections = {name: getattr(config, name) for name in ("training", "lr_schedule", "data", "lora", "qlora")}
    settings = {
        f"{name}.{key}": value
        for name, section in sections.items()
        if section is not None
        for key, value in asdict(section).items()
        if key not in FREE
    }
    base, data = hashlib.sha256(), hashlib.sha256()
    for name, weight in trainer.model.named_parameters():
        if not weight.requires_grad:
            array = weight.codes if isinstance(weight, QuantizedTensor) else weight.numpy()
            base.update(f"{name} {weight.dtype} {array.shape}".encode())
            base.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8)[:FINGERPRINT_BYTES].tobytes())
    for sample in trainer.loader.samples:
        data.update(sample.tokens.tobytes())
        data.update(sample.trained.tobytes())
    return settings | {"the base model": base.hexdigest(), "the examples": data.hexdigest()}


def _check_identity(directory: Path, found: Any, expected: Mapping[str, Any]) -> None:
    if not isinstance(found, dict):
        raise FormatError(f"{directory}: says nothing of its settings; the checkpoint is damaged.")
    for key in (*expected, *found):
        ours, theirs = expected.get(key), found.get(key)
        if ours == theirs:
            continue
        if key.startswith("the "):
            raise ConfigError(f"{directory}: was written with another of {key}; resume with the same, or start anew.")
        raise ConfigError(
            f"{key}: is {ours!r} and was {theirs!r} when {directory} was written; resume with the same, or start anew."
        )


def _split(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """`value` with every array replaced by a reference into `arrays`."""
    if isinstance(value, np.ndarray):
        arrays[path] = value
        return {"array": path}
    if isinstance(value, dict):
        return {"dict": [[key, _split(item, f"{path}/{key}", arrays)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_split(item, f"{path}/{i}", arrays) for i, item in enumerate(value)]}
    return {"value": value}


def _join(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    ((kind, content),) = value.items()
    if kind == "array":
        return arrays[content]
    if kind == "dict":
        return {key: _join(item, arrays) for key, item in content}
    if kind == "list":
        return [_join(item, arrays) for item in content]
    return content


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says when `path` cannot be written, as one sentence that names it."""
    try:
        yield
    except OSError as error:
        if isinstance(error, EntrenarError):
            raise
        raise FormatError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another place."
        ) from error


def save(trainer: Trainer, directory: Path) -> None:
    """Write the state of a run; the previous checkpoint is replaced only when this one is complete.

    Raises NumericsError, and keeps the previous one, where a weight is not finite.
    """
    name = first_nonfinite_weight(trainer.parameters)
    if name is not None:
        raise NumericsError(
            f"The weight {name} is not finite after step {trainer.step}; lower the learning rate. "
            "The last checkpoint is kept."
        )
    state = {
        "step": trainer.step,
        "identity": trainer.identity,
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state_dict(),
        "loader": trainer.loader.state_dict(),
        "random": random.get_state(),
        "weights": {name: tensor.numpy() for name, tensor in trainer.parameters},
        "reports": [asdict(report) for report in trainer.reports],
        "notes": trainer.notes,
    }
    arrays: dict[str, np.ndarray] = {}
    values = _split(state, "state", arrays)
    with writing(directory), atomic_directory(directory) as folder:
        (folder / VALUES).write_text(json.dumps(values))
        save_safetensors(folder / ARRAYS, arrays)


def tidy(directory: Path) -> None:
    """Remove what a process killed while it saved left beside `directory`, and put back what it had set aside."""
    for aside in directory.parent.glob(f".{directory.name}.*.old"):
        if directory.exists():
            shutil.rmtree(aside)
        else:
            aside.replace(directory)
    for part in directory.parent.glob(f".{directory.name}.*.part"):
        shutil.rmtree(part)


def load(trainer: Trainer, directory: Path) -> None:
    """Continue from a checkpoint; FormatError where it is missing or damaged, ConfigError where it is another run's."""
    tidy(directory)
    if not directory.is_dir():
        raise FormatError(f"{directory}: there is no checkpoint to resume; start without resume first.")
    try:
        _restore(trainer, directory)
    except EntrenarError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{directory}: is no complete checkpoint ({type(error).__name__}: {error}).") from error


def _restore(trainer: Trainer, directory: Path) -> None:
    values = json.loads((directory / VALUES).read_text())
    arrays = {name: lazy.load() for name, lazy in open_safetensors(directory / ARRAYS).items()}
    state = _join(values, arrays)
    _check_identity(directory, state["identity"], trainer.identity)
    weights = state["weights"]
    for name, tensor in trainer.parameters:
        if np.shape(weights.get(name)) != tensor.shape:
            raise FormatError(
                f"{directory}: its weight {name} has shape {np.shape(weights.get(name))}, expected {tensor.shape}."
            )
    if not isinstance(state["step"], int) or state["step"] != len(state["reports"]) or state["step"] < 1:
        raise FormatError(f"{directory}: stands at step {state['step']!r} after {len(state['reports'])} reports.")
    reports = list(_reports(state["reports"]))
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.schedule.load_state_dict(state["schedule"])
    trainer.loader.load_state_dict(state["loader"])
    random.set_state(state["random"])
    for name, tensor in trainer.parameters:
        tensor.numpy()[...] = weights[name]
    trainer.step, trainer.reports, trainer.notes = state["step"], reports, dict(state["notes"])


def _reports(stored: Any) -> Iterator[StepReport]:
    for values in stored:
        held_out = values.pop("held_out")
        yield StepReport(**values, held_out=None if held_out is None else Evaluation(**held_out))
