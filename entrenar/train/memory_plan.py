"""The memory of a run that is not started: by part, against what is available, and what would make it fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrenar.config import shipped_configurations
from entrenar.io.hub import fetch_default_model
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.config import LLaMAConfig
from entrenar.models.weights import storage_of
from entrenar.observe.hardware import available_memory
from entrenar.train.config import TrainConfig, shape_hint
from entrenar.train.finetune import check_length, storage_policy
from entrenar.train.memory import MemoryEstimate, Remedy, chosen, remedies, shortage, step_memory

PUBLISHED, PUBLISHED_GGUF = "bfloat16", "BF16"  # the type in which models are published, and its name in GGUF


@dataclass(frozen=True)
class Planned:
    """The plan of a run. `remedies` are there where it does not fit, `shortage` then says so in a sentence."""

    model: str
    parameters: int
    trained: int
    layers: int
    recomputed: int
    needed: MemoryEstimate
    available: int
    remedies: list[Remedy]
    assumed: str | None = None  # in which type the weights of a shape are taken to be stored, where no flag says it

    @property
    def fits(self) -> bool:
        """Whether what is needed is available."""
        return self.needed.total <= self.available

    @property
    def shortage(self) -> str | None:
        """The sentence for a run that does not fit."""
        return None if self.fits else shortage(self.needed, self.available, self.remedies)

    def table(self) -> dict[str, Any]:
        """Everything as values that JSON can hold; bytes."""
        return {
            "model": self.model,
            "assumed_dtype": self.assumed,
            "parameters": self.parameters,
            "trained_parameters": self.trained,
            "layers": self.layers,
            "recomputed_layers": self.recomputed,
            "parts": self.needed.items,
            "bytes": self.needed.total,
            "available_bytes": self.available,
            "fits": self.fits,
            "remedies": [{"settings": remedy.settings, "bytes": remedy.total} for remedy in self.remedies],
        }


def planned(model: str | None, config: TrainConfig, *, dtype: str = "auto", quantize: str | None = None) -> Planned:
    """The plan of fine-tuning `model`: a checkpoint, or the TOML file of a shape, whose weights no file has.

    Without an adapter the model of a shape is trained from scratch; with one its weights are taken to be stored in
    bfloat16, as such models are published, and dtype "auto" leaves them so. Raises EntrenarError as `finetune` would.
    """
    policy = storage_policy(config, dtype, quantize)
    place = str(fetch_default_model()) if model is None else model
    if place.endswith(".toml") or place in shipped_configurations():
        shape = LLaMAConfig.from_file(place, shape_hint)
        shapes = shape.parameter_shapes()
        assumed = PUBLISHED if config.adapter is not None and policy.dtype == "auto" else None
        storage = None if config.adapter is None else policy.storage(shapes, dict.fromkeys(shapes, PUBLISHED_GGUF))
    else:
        assumed, checkpoint = None, Checkpoint.open(Path(place))
        checkpoint.check()
        shape, storage = checkpoint.config, storage_of(checkpoint, policy)
    check_length(config, shape, place)
    available = available_memory()
    step = step_memory(shape, config, storage)
    count, needed = chosen(step, config, available)
    fitting = remedies(shape, config, storage, available) if needed.total > available else []
    trained = step.gradients // 4
    layers, parameters = shape.num_hidden_layers, shape.num_parameters()
    return Planned(place, parameters, trained, layers, count, needed, available, fitting, assumed)
