"""Checkpoints of a run: trained weights, optimizer, schedule, random state and data position, written as a whole.

`state.json` holds plain values, `state.safetensors` the arrays, all float32; nothing is pickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from entrenar.autograd import random
from entrenar.errors import FormatError
from entrenar.io.checkpoint import atomic_directory
from entrenar.io.safetensors import open_safetensors, save_safetensors

if TYPE_CHECKING:
    from entrenar.train.trainer import Trainer

VALUES, ARRAYS = "state.json", "state.safetensors"


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


def _join(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    ((kind, content),) = value.items()
    if kind == "array":
        return arrays[content]
    if kind == "dict":
        return {key: _join(item, arrays) for key, item in content}
    if kind == "list":
        return [_join(item, arrays) for item in content]
    return content


def save(trainer: Trainer, directory: Path) -> None:
    """Write the state of a run; the previous checkpoint is replaced only when this one is complete."""
    state = {
        "step": trainer.step,
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.schedule.state_dict(),
        "loader": trainer.loader.state_dict(),
        "random": random.get_state(),
        "weights": {name: tensor.numpy() for name, tensor in trainer.parameters},
    }
    arrays: dict[str, np.ndarray] = {}
    values = _split(state, "state", arrays)
    with atomic_directory(directory) as folder:
        (folder / VALUES).write_text(json.dumps(values))
        save_safetensors(folder / ARRAYS, arrays)


def load(trainer: Trainer, directory: Path) -> None:
    """Continue from a checkpoint; FormatError where it is missing, damaged, or of other weights."""
    if not directory.is_dir():
        raise FormatError(f"{directory}: has no checkpoint to resume; start without resume first.")
    try:
        values = json.loads((directory / VALUES).read_text())
        arrays = {name: lazy.load() for name, lazy in open_safetensors(directory / ARRAYS).items()}
        state = _join(values, arrays)
        weights = state["weights"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{directory}: is no complete checkpoint ({type(error).__name__}: {error}).") from error
    expected = {name: tensor.shape for name, tensor in trainer.parameters}
    found = {name: array.shape for name, array in weights.items()}
    if expected != found:
        name = next(iter(set(expected.items()) ^ set(found.items())))[0]
        raise FormatError(
            f"{directory}: its weight {name} does not fit this model; resume with the configuration it began with."
        )
    for name, tensor in trainer.parameters:
        tensor.numpy()[...] = weights[name]
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.schedule.load_state_dict(state["schedule"])
    trainer.loader.load_state_dict(state["loader"])
    random.set_state(state["random"])
    trainer.step = state["step"]
