"""Adapters on a model: attach, save and load in PEFT's format, merge, train or evaluate.

A directory holds `adapter_config.json` and `adapter_model.safetensors`, whose keys are
`base_model.model.` + the model's own name, as PEFT 0.4 and newer write and read them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from entrenar.adapters.lora import LoRAConfig, LoRALinear
from entrenar.adapters.peft_table import in_terms_of_peft
from entrenar.adapters.peft_weights import PREFIX, WEIGHTS_FILE, read_weights
from entrenar.errors import ConfigError, FormatError, MemoryBudgetError
from entrenar.io.atomic import atomic_files
from entrenar.io.json_file import read_json_object
from entrenar.io.safetensors import save_safetensors
from entrenar.models.api import LLaMAModel
from entrenar.models.budget import available_memory
from entrenar.nn.layers import Linear

CONFIG_FILE = "adapter_config.json"


def lora_layers(model: LLaMAModel) -> Iterator[tuple[str, LoRALinear]]:
    """(name, layer) of every adapter on the model."""
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            yield name, module


def check_no_adapters(model: LLaMAModel) -> None:
    """ConfigError where the model has adapters already."""
    if next(lora_layers(model), None) is not None:
        raise ConfigError("The model already has LoRA adapters; merge them before adding others.")


def check_adapters_fit(model: LLaMAModel, config: LoRAConfig) -> None:
    """MemoryBudgetError where the adapters alone exceed the available memory."""
    needed, available = 4 * config.num_parameters(model.config), available_memory()
    if needed > available:
        raise MemoryBudgetError(
            f"The adapters of rank {config.rank} need {needed / 2**30:.1f} GiB and {available / 2**30:.1f} GiB is "
            "available; use a lower rank."
        )


def attach(model: LLaMAModel, config: LoRAConfig, seed: int = 0) -> None:
    """Freeze the model and put an adapter on every linear that `config` names.

    Raises ConfigError where the model already has adapters, or `config` names what the model does not have;
    MemoryBudgetError where the adapters cannot fit.
    """
    check_no_adapters(model)
    layers = config.layers(model.config)
    check_adapters_fit(model, config)
    modules = [(name, module) for name, module in model.named_modules() if name in layers]
    model.freeze()
    rng = np.random.Generator(np.random.Philox(seed))
    for name, module in modules:
        assert isinstance(module, Linear)  # the linears of decoder layers alone are in `layers`
        rank, alpha = layers[name]
        model.replace(name, LoRALinear(module, rank, config.scaling_of(rank, alpha), config.dropout, rng))
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
    """Write the adapter so that `peft.PeftModel.from_pretrained` and `load_adapter` read it.

    Other files in `directory` stay as they are; a process that is killed meanwhile leaves the old adapter, the new one,
    or a folder without adapter_config.json.
    """
    layers = list(lora_layers(model))
    config = model.lora_config
    if not layers or config is None:
        raise ConfigError("The model has no LoRA adapters to save.")
    if (Path(directory) / "config.json").exists():
        raise ConfigError(
            f"{directory}: holds a model (config.json), which readers would no longer take for itself with an adapter "
            "beside it; save the adapter in another folder."
        )
    tensors = {}
    for name, layer in layers:
        tensors[f"{PREFIX}{name}.lora_A.weight"] = layer.lora_A.numpy()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = layer.lora_B.numpy()
    with atomic_files(directory, key=CONFIG_FILE) as folder:
        text = json.dumps(dict(sorted(config.to_peft(base_model).items())), indent=2)  # the order of patterns matters
        (folder / CONFIG_FILE).write_text(text + "\n")
        save_safetensors(folder / WEIGHTS_FILE, tensors, {"format": "pt"})


def read_adapter_config(directory: str | Path) -> LoRAConfig:
    """The configuration of a PEFT adapter directory; FormatError or ConfigError where it is missing or unsupported."""
    path = Path(directory) / CONFIG_FILE
    try:
        table = read_json_object(path, "a PEFT adapter directory")
    except FormatError as error:
        if isinstance(error.__cause__, FileNotFoundError) and (inner := sorted(path.parent.glob(f"*/{CONFIG_FILE}"))):
            name = inner[0].parent.name
            raise FormatError(f"{path}: no such file; the folder {name} in it has one, give that folder.") from error
        raise
    return LoRAConfig.from_peft(table, where=str(path))


def load_adapter(model: LLaMAModel, directory: str | Path) -> None:
    """Put the adapter of a PEFT directory on the model; every tensor must be there with its shape, and no other.

    As in PEFT, its dropout is off until `set_training(model, True)`, and nothing holds the base that it was made over
    against this model. Where anything is wrong the model is unchanged.
    """
    config = read_adapter_config(directory)
    path = Path(directory) / WEIGHTS_FILE
    try:
        expected = adapter_shapes(model, config)
    except ConfigError as error:
        text = in_terms_of_peft(str(error), config.section)
        raise ConfigError(f"{Path(directory) / CONFIG_FILE}: {text}") from error
    tensors = read_weights(path, expected)
    attach(model, config)
    for name, layer in lora_layers(model):
        layer.lora_A.numpy()[...] = tensors[f"{PREFIX}{name}.lora_A.weight"]
        layer.lora_B.numpy()[...] = tensors[f"{PREFIX}{name}.lora_B.weight"]
    set_training(model, False)


def adapter_shapes(model: LLaMAModel, config: LoRAConfig) -> dict[str, tuple[int, int]]:
    """The names and shapes of the tensors that the adapter's file must hold; A is (rank, in), B is (out, rank)."""
    layers, shapes = config.layers(model.config), {}
    for name, module in model.named_modules():
        if name in layers:
            assert isinstance(module, Linear)
            rank = layers[name][0]
            shapes[f"{PREFIX}{name}.lora_A.weight"] = (rank, module.in_features)
            shapes[f"{PREFIX}{name}.lora_B.weight"] = (module.out_features, rank)
    return shapes
