"""What the kinds share that put a layer on chosen linears: which linears, their weights, what they save."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy as np

from entrenar.adapters.base import Adapter, AdapterConfig, base_shapes, copied
from entrenar.adapters.targets import (
    Shaped,
    check_pattern,
    checked_targets,
    chosen_of,
    decoder_layer,
    is_linear,
    listed,
    module_names,
    named,
)
from entrenar.errors import ConfigError
from entrenar.nn.layers import Linear
from entrenar.nn.module import Module

Config = TypeVar("Config", bound="LinearAdapterConfig")


class LinearAdapterConfig(AdapterConfig):
    """Settings that name linears.

    Names in lists mean every layer whose name ends in them ("q_proj", "layers.0.self_attn.q_proj"); a text with other
    characters than names have is a regular expression for whole names, as in PEFT.
    """

    layer: ClassVar[type[Adapter]]

    target_modules: list[str] | str
    exclude_modules: list[str] | str

    def __post_init__(self) -> None:
        self.target_modules, self.exclude_modules = listed(self.target_modules), listed(self.exclude_modules)
        super().__post_init__()
        for key in ("target_modules", "exclude_modules"):
            if isinstance(pattern := getattr(self, key), str):
                check_pattern(pattern, f"{self.section}.{key}")
        if not isinstance(self.target_modules, str):
            where = f"{self.section}.target_modules"
            self.target_modules = checked_targets(self.target_modules, where, self.adapts)

    # ------------------------------------------------------------------ what a kind says
    @abstractmethod
    def layers(self, model: Shaped) -> dict[str, Any]:
        """What `layer.from_base` needs for every linear that gets an adapter, by name, in the model's order.

        ConfigError where a setting names what the model does not have, or what is no linear of a decoder layer.
        """

    @abstractmethod
    def weight_shapes(self, settings: Any, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
        """The names and shapes of `adapter_weights` on a linear of this size."""

    @abstractmethod
    def saved_floats(self, settings: Any, out_features: int, in_features: int) -> int:
        """Floats a token that an adapter on a linear of this size saves for its backward pass."""

    @property
    def layer_type(self) -> type[Adapter]:
        """The layer that these settings make."""
        return self.layer

    def adapts(self, name: str) -> bool:
        """Whether there is a layer of this kind for the module of this name, or for modules whose names end so."""
        return is_linear(name)

    def in_layers(self, names: Sequence[str], layers: Sequence[int]) -> set[str]:
        """Those of the modules that belong to decoder layers of these numbers."""
        return {name for name in names if decoder_layer(name) in layers}

    def trained_whole(self, names: set[str]) -> set[str]:
        """Those of the modules that are trained as they are, and get no adapter."""
        return set()

    # ------------------------------------------------------------------ what follows
    def targets(self, model: Shaped, layers: Sequence[int] = ()) -> list[str]:
        """The names of the linears that get an adapter, in the model's order; of `layers` only, where there are some.

        Raises as `layers`.
        """
        names, where = module_names(base_shapes(model)), f"{self.section}.target_modules"
        wanted = chosen_of(self.target_modules, names)
        chosen = named(wanted, names, where)
        if layers:
            whole = set(wanted)  # a whole name is meant wherever it is
            inside = self.in_layers(names, layers)
            chosen = {name for name in chosen if name in whole or name in inside}
        if self.exclude_modules:
            chosen -= named(self.exclude_modules, names, f"{self.section}.exclude_modules")
        chosen -= self.trained_whole(chosen)
        for name in sorted(chosen):
            if not self.adapts(name):
                raise ConfigError(
                    f"{where}: {self.target_modules!r} matches {name}, which is no linear of a "
                    "decoder layer and gets no adapter here; name the layers."
                )
        if not chosen:
            raise ConfigError(f"No layer of the model matches target_modules {self.target_modules!r}.")
        return [name for name in names if name in chosen]

    def adapter_shapes(self, model: Shaped) -> dict[str, tuple[int, ...]]:
        shapes = base_shapes(model)
        return {
            f"{name}.{part}": shape
            for name, settings in self.layers(model).items()
            for part, shape in self.weight_shapes(settings, *shapes[f"{name}.weight"]).items()
        }

    def activation_floats(self, model: Shaped) -> int:
        shapes, layers = base_shapes(model), Counter[int | None]()
        for name, settings in self.layers(model).items():
            layers[decoder_layer(name)] += self.saved_floats(settings, *shapes[f"{name}.weight"])
        return max(layers.values())

    def resolved(self: Config, model: Module) -> Config:
        """With the names that the targets have on this model."""
        wanted = chosen_of(self.target_modules, module_names(base_shapes(model)))
        return self if wanted == self.target_modules else replace(self, target_modules=wanted)  # type: ignore[type-var]

    def install(self, model: Module, seed: int) -> None:
        layers, rng = self.layers(model), np.random.Generator(np.random.Philox(seed))
        for name, module in [(name, module) for name, module in model.named_modules() if name in layers]:
            assert isinstance(module, Linear)  # the linears of decoder layers alone are in `layers`
            original = partial(model.original, f"{name}.weight")
            model.replace(name, self.layer_type.from_base(module, self, layers[name], rng, original))

    def to_peft(self, base_model: str | None = None) -> dict[str, Any]:
        return super().to_peft(base_model) | {
            "target_modules": copied(self.target_modules),
            "exclude_modules": copied(self.exclude_modules) or None,
            "fan_in_fan_out": False,
            "modules_to_save": None,
        }
