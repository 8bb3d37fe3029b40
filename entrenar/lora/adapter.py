"""Adapters on a model: attach, save and load in PEFT's format, merge, train or evaluate.

A directory holds `adapter_config.json` and `adapter_model.safetensors`, whose keys are
`base_model.model.` + the model's own name, as PEFT 0.4 and newer write and read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from entrenar.errors import ConfigError, FormatError
from entrenar.io.checkpoint import atomic_directory
from entrenar.io.json_file import read_json_object
from entrenar.io.safetensors import open_safetensors, save_safetensors
from entrenar.llama.model import LLaMAModel
from entrenar.llama.modules import Linear
from entrenar.lora.config import LoRAConfig
from entrenar.lora.layer import LoRALinear

PREFIX = "base_model.model."
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def lora_layers(model: LLaMAModel) -> Iterator[tuple[str, LoRALinear]]:
    """(name, layer) of every adapter on the model."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


def check_no_adapters(model: LLaMAModel) -> None:
    """ConfigError where the model has adapters already."""
    if next(lora_layers(model), None) is not None:
        raise ConfigError("The model already has LoRA adapters; merge them before adding others.")


def attach(model: LLaMAModel, config: LoRAConfig, seed: int = 0) -> None:
    """Freeze the model and put an adapter on every linear that `config.target_modules` names.

    Raises ConfigError where the model already has adapters or no layer matches.
    """
    check_no_adapters(model)
    targets = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, Linear) and name.rsplit(".", 1)[-1] in config.target_modules
    ]
    if not targets:
        raise ConfigError(f"No layer of the model matches target_modules {list(config.target_modules)}.")
    model.freeze()
    rng = np.random.Generator(np.random.Philox(seed))
    for name, module in targets:
        model.replace(name, LoRALinear(module, config.rank, config.scaling, config.dropout, rng))
    model.lora_config = config


def set_training(model: LLaMAModel, training: bool) -> None:
    """Switch the adapters' dropout on for training or off for evaluation."""
    for _, layer in lora_layers(model):
        layer.training = training


def merge(model: LLaMAModel) -> None:
    """Replace every adapter by a plain float32 linear that computes the same; in place."""
    layers = list(lora_layers(model))
    if not layers:
        raise ConfigError("The model has no LoRA adapters to merge.")
    for name, layer in layers:
        model.replace(name, layer.merged())
    model.lora_config = None


def save_adapter(model: LLaMAModel, directory: str | Path, *, base_model: str | None = None) -> None:
    """Write the adapter so that `peft.PeftModel.from_pretrained` and `load_adapter` read it; atomically."""
    layers = list(lora_layers(model))
    config = model.lora_config
    if not layers or config is None:
        raise ConfigError("The model has no LoRA adapters to save.")
    tensors = {}
    for name, layer in layers:
        tensors[f"{PREFIX}{name}.lora_A.weight"] = layer.lora_A.numpy()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = layer.lora_B.numpy()
    with atomic_directory(directory) as folder:
        text = json.dumps(config.to_peft(base_model), indent=2, sort_keys=True)
        (folder / CONFIG_FILE).write_text(text + "\n")
        save_safetensors(folder / WEIGHTS_FILE, tensors, {"format": "pt"})


def read_adapter_config(directory: str | Path) -> LoRAConfig:
    """The configuration of a PEFT adapter directory; FormatError or ConfigError where it is missing or unsupported."""
    path = Path(directory) / CONFIG_FILE
    return LoRAConfig.from_peft(read_json_object(path, "a PEFT adapter directory"), where=str(path))


def load_adapter(model: LLaMAModel, directory: str | Path) -> None:
    """Put the adapter of a PEFT directory on the model; every tensor must be there with its shape, and no other.

    As in PEFT, its dropout is off until `set_training(model, True)`. Where anything is wrong the model is unchanged.
    """
    config = read_adapter_config(directory)
    path = Path(directory) / WEIGHTS_FILE
    stored = open_safetensors(path)
    check_adapter_shapes(model, config, {name: tuple(lazy.shape) for name, lazy in stored.items()}, path)
    tensors = {name: lazy.load() for name, lazy in stored.items()}
    attach(model, config)
    for name, layer in lora_layers(model):
        layer.lora_A.numpy()[...] = tensors[f"{PREFIX}{name}.lora_A.weight"]
        layer.lora_B.numpy()[...] = tensors[f"{PREFIX}{name}.lora_B.weight"]
    set_training(model, False)


def check_adapter_shapes(model: LLaMAModel, config: LoRAConfig, stored: dict[str, tuple[int, ...]], path: Path) -> None:
    """Hold the names and shapes of a file against the layers that the configuration names, before anything changes."""
    expected = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear) and name.rsplit(".", 1)[-1] in config.target_modules:
            expected[f"{PREFIX}{name}.lora_A.weight"] = (config.rank, module.in_features)
            expected[f"{PREFIX}{name}.lora_B.weight"] = (module.out_features, config.rank)
    for name, shape in expected.items():
        if name not in stored:
            raise FormatError(
                f"{path}: the tensor {name} of shape {shape} is missing; the adapter does not fit the model."
            )
        if stored[name] != shape:
            raise FormatError(f"{path}: the tensor {name} has shape {stored[name]}, expected {shape}.")
    unknown = sorted(set(stored) - set(expected))
    if unknown:
        raise FormatError(
            f"{path}: the tensor {unknown[0]} belongs to no layer that the adapter's configuration names."
        )
