"""The whole configuration of a run as commented TOML, which runs it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from entrenar.config import dump_toml, toml_value
from entrenar.models.config import LLaMAConfig
from entrenar.train.config import Pretrained, TrainConfig


def whole_toml(config: TrainConfig, model: Pretrained | LLaMAConfig, shape: Mapping[str, Any] | None = None) -> str:
    """Every section with every key, its help and default; `shape` are keys of [model] that the base must have."""
    parts = [dump_toml(model, "model")]
    if shape:
        parts[0] += "".join(f"{key} = {toml_value(value)}\n" for key, value in shape.items())
    parts += [dump_toml(getattr(config, spec.name), spec.name) for spec in fields(config) if spec.name != "adapter"]
    if config.adapter is not None:
        parts.append(dump_toml(config.adapter, config.adapter.section))
    return "\n".join(parts)


def to_run_again(config: TrainConfig) -> TrainConfig:
    """The configuration without what continues or replaces an earlier run."""
    return replace(config, checkpointing=replace(config.checkpointing, resume=False, overwrite=False))
