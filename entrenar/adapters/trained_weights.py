"""Weights of the base that are trained beside adapters and saved with them: whole modules and biases.

PEFT's `modules_to_save`, `ensure_weight_tying` and `bias` (peft/utils/other.py, peft/tuners/tuners_utils.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from entrenar.adapters.targets import module_names
from entrenar.autograd import Tensor
from entrenar.autograd.quantized import QuantizedTensor
from entrenar.errors import ConfigError
from entrenar.nn.module import Module, Weight

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
Shapes = Mapping[str, tuple[int, ...]]


def is_tied(shapes: Shapes) -> bool:
    """Whether the head has the embedding's weight."""
    return f"{EMBEDDING}.weight" in shapes and f"{HEAD}.weight" not in shapes


def within(name: str, modules: Sequence[str]) -> bool:
    """Whether the weight or module of this name is one of the modules, or in one: a name means every end that it is."""
    parts = name.split(".")
    prefixes = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return any(prefix.endswith(module) for prefix in prefixes for module in modules)


def saved_modules(shapes: Shapes, modules: Sequence[str], tying: bool, where: str) -> dict[str, tuple[int, ...]]:
    """The weights of whole modules by name; the head's too where it gets one of its own.

    ConfigError for a name that no module ends in.
    """
    names = module_names(shapes)
    for module in modules:
        if not any(name.endswith(module) for name in names):
            raise ConfigError(f"{where}: {module!r} matches no module of the model.")
    found = {name: shape for name, shape in shapes.items() if within(name.rpartition(".")[0], modules)}
    if is_tied(shapes) and within(HEAD, modules):
        embedding = f"{EMBEDDING}.weight"
        found[embedding if tying else f"{HEAD}.weight"] = shapes[embedding]
    return found


def biases(shapes: Shapes, which: str, adapted: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """The biases that are trained: none, those of the `adapted` linears (lora_only), or all."""
    if which == "none":
        return {}
    owners = set(adapted)
    return {
        name: shape
        for name, shape in shapes.items()
        if name.endswith(".bias") and (which == "all" or name.removesuffix(".bias") in owners)
    }


def train(model: Module, names: Iterable[str]) -> None:
    """Make each weight of these names a float32 copy that takes a gradient."""
    modules = dict(model.named_modules())
    for name in names:
        path, _, attribute = name.rpartition(".")
        module: Any = modules[path]
        setattr(module, attribute, Tensor.from_numpy(_copied(getattr(module, attribute)), requires_grad=True))


def _copied(weight: Weight) -> np.ndarray:
    values = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight.numpy()
    return np.array(values, np.float32)


def untie(model: Module) -> None:
    """Give the head of a tied model a weight of its own; ConfigError for a tree that cannot."""
    untie_head = getattr(model, "untie_head", None)
    if untie_head is None:
        raise ConfigError("The tree has a head with the embedding's weight and cannot give it one of its own.")
    untie_head()
