"""What every kind of adapter is: a layer on a frozen linear, and a configuration that says which linears get one.

A kind is a file with a subclass of `Adapter` and one of `AdapterConfig`, and its section in `entrenar.config`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from entrenar.adapters.peft_table import PeftTable
from entrenar.adapters.targets import (
    Shaped,
    check_pattern,
    checked_targets,
    decoder_layer,
    is_linear,
    listed,
    module_names,
    named,
)
from entrenar.autograd import Tensor
from entrenar.autograd.quantized import QuantizedTensor
from entrenar.config import check_dataclass
from entrenar.errors import ConfigError, MemoryBudgetError
from entrenar.nn.layers import Linear
from entrenar.nn.module import Module, Weight
from entrenar.observe.hardware import available_memory

Config = TypeVar("Config", bound="AdapterConfig")


class Adapter(Linear, ABC):
    """A linear whose weights are frozen, of whatever weight type, with trained weights that change what it computes.

    A kind overrides what it changes of `Linear`: `prepare` the input, `terms` the product, `finish` the output.
    """

    def __init__(self, base: Linear) -> None:
        super().__init__(base.weight, base.bias)
        for weight in (base.weight, base.bias):
            if isinstance(weight, Tensor):
                weight.requires_grad = False
        self.training = True  # whether dropout is on

    @classmethod
    @abstractmethod
    def from_base(cls, base: Linear, config: Any, settings: Any, rng: np.random.Generator) -> Adapter:
        """A new adapter on `base`; `settings` is what `config.layers` has for it, `rng` draws its initial weights."""

    @abstractmethod
    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, weight) of the trained weights, named and shaped as in PEFT's files."""

    @abstractmethod
    def merged(self) -> Linear:
        """A plain float32 linear that computes the same; a quantized or bfloat16 weight is dequantized for it."""

    def own_weights(self) -> Iterator[tuple[str, Weight]]:
        """The base's weights under their own names, then the adapter's."""
        yield "weight", self.weight
        if self.bias is not None:
            yield "bias", self.bias
        yield from self.adapter_weights()

    def dequantized(self) -> np.ndarray:
        """The base's weight (out_features, in_features) as a float32 copy."""
        weight = self.weight.dequantize() if isinstance(self.weight, QuantizedTensor) else self.weight.numpy()
        return weight.astype(np.float32)


class AdapterConfig(ABC):
    """The settings of one kind, a dataclass. Raises ConfigError for a value out of range.

    Names in lists mean every layer whose name ends in them ("q_proj", "layers.0.self_attn.q_proj"); a text with other
    characters than names have is a regular expression for whole names, as in PEFT.
    """

    section: ClassVar[str]  # of a configuration file; what messages call the configuration
    title: ClassVar[str]  # what people call the kind
    peft: ClassVar[PeftTable]  # its adapter_config.json
    layer: ClassVar[type[Adapter]]

    target_modules: list[str] | str
    exclude_modules: list[str] | str

    def __post_init__(self) -> None:
        self.target_modules, self.exclude_modules = listed(self.target_modules), listed(self.exclude_modules)
        check_dataclass(self, self.section)
        for key in ("target_modules", "exclude_modules"):
            if isinstance(pattern := getattr(self, key), str):
                check_pattern(pattern, f"{self.section}.{key}")
        if not isinstance(self.target_modules, str):
            self.target_modules = checked_targets(self.target_modules, f"{self.section}.target_modules")

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

    def check_use(self) -> None:  # noqa: B027 (a kind may have no such setting)
        """ConfigError for a setting of a run that has no effect beside the others."""

    def storage_options(self) -> dict[str, Any]:
        """What the section says of the base's storage: options of StoragePolicy."""
        return {}

    def named_in_budget(self) -> tuple[str, str]:
        """What a budget calls the adapters, and how they get smaller."""
        return f"The {self.title} adapters", "use fewer target modules"

    # ------------------------------------------------------------------ what follows for every kind
    def targets(self, model: Shaped, layers: Sequence[int] = ()) -> list[str]:
        """The names of the linears that get an adapter, in the model's order; of `layers` only, where there are some.

        Raises as `layers`.
        """
        names = module_names(model.parameter_shapes())
        chosen = named(self.target_modules, names, f"{self.section}.target_modules")
        if layers:
            whole = set(self.target_modules)  # a whole name is meant wherever it is
            chosen = {name for name in chosen if name in whole or decoder_layer(name) in layers}
        if self.exclude_modules:
            chosen -= named(self.exclude_modules, names, f"{self.section}.exclude_modules")
        for name in sorted(chosen):
            if not is_linear(name):
                raise ConfigError(
                    f"{self.section}.target_modules: {self.target_modules!r} matches {name}, which is no linear of a "
                    "decoder layer and gets no adapter here; name the layers."
                )
        if not chosen:
            raise ConfigError(f"No layer of the model matches target_modules {self.target_modules!r}.")
        return [name for name in names if name in chosen]

    def num_parameters(self, model: Shaped) -> int:
        """The exact number of trained weights on a model of this shape."""
        return sum(math.prod(shape) for shape in self.adapter_shapes(model).values())

    def adapter_shapes(self, model: Shaped) -> dict[str, tuple[int, ...]]:
        """The shape of every trained weight by its name in the model."""
        shapes = model.parameter_shapes()
        return {
            f"{name}.{part}": shape
            for name, settings in self.layers(model).items()
            for part, shape in self.weight_shapes(settings, *shapes[f"{name}.weight"]).items()
        }

    def activation_floats(self, model: Shaped) -> int:
        """Floats a token that the adapters of one decoder layer save for backward, of the layer where that is most."""
        shapes, layers = model.parameter_shapes(), Counter[int | None]()
        for name, settings in self.layers(model).items():
            layers[decoder_layer(name)] += self.saved_floats(settings, *shapes[f"{name}.weight"])
        return max(layers.values())

    def apply(self, model: Module, seed: int = 0) -> None:
        """Freeze `model` and put an adapter on every linear that the settings name, in place.

        `seed` draws initial weights. Raises ConfigError where the model has adapters already, or a setting names what
        it does not have; MemoryBudgetError where the adapters cannot fit.
        """
        check_no_adapters(model)
        layers = self.layers(model)
        self._check_fits(model)
        modules = [(name, module) for name, module in model.named_modules() if name in layers]
        model.freeze()
        rng = np.random.Generator(np.random.Philox(seed))
        for name, module in modules:
            assert isinstance(module, Linear)  # the linears of decoder layers alone are in `layers`
            model.replace(name, self.layer.from_base(module, self, layers[name], rng))
        model.adapter_config = self

    def _check_fits(self, model: Shaped) -> None:
        needed, available = 4 * self.num_parameters(model), available_memory()
        if needed > available:
            what, advice = self.named_in_budget()
            raise MemoryBudgetError(
                f"{what} need {needed / 2**30:.1f} GiB and {available / 2**30:.1f} GiB is available; {advice}."
            )

    # ------------------------------------------------------------------ PEFT's adapter_config.json
    def to_peft(self, base_model: str | None = None) -> dict[str, Any]:
        """The content of an adapter_config.json, which a kind completes."""
        return {
            "peft_type": self.peft.peft_type,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "target_modules": copied(self.target_modules),
            "exclude_modules": copied(self.exclude_modules) or None,
            "fan_in_fan_out": False,
            "inference_mode": True,
            "modules_to_save": None,
        }

    @classmethod
    def from_peft(cls: type[Config], table: Mapping[str, Any], where: str = "adapter_config.json") -> Config:
        """From an adapter_config.json; ConfigError, naming the setting, for what entrenar does not compute."""
        settings = cls.peft.settings_of(table, where)
        try:
            return cls(**settings)
        except ConfigError as error:
            raise ConfigError(f"{where}: {cls.peft.in_terms_of_peft(str(error), cls.section)}") from error


def copied(names: list[str] | str) -> list[str] | str:
    """A setting of names that shares nothing with another."""
    return names if isinstance(names, str) else list(names)


# ---------------------------------------------------------------------- adapters on a module tree
def adapter_layers(model: Module) -> Iterator[tuple[str, Adapter]]:
    """(name, layer) of every adapter on the model."""
    for name, module in model.named_modules():
        if isinstance(module, Adapter):
            yield name, module


def check_no_adapters(model: Module) -> None:
    """ConfigError where the model has adapters already."""
    if next(adapter_layers(model), None) is not None:
        raise ConfigError(
            f"The model already has {model.adapter_config.title} adapters; merge them before adding others."
        )


def set_training(model: Module, training: bool) -> None:
    """Switch the adapters' dropout on for training or off for evaluation."""
    for _, layer in adapter_layers(model):
        layer.training = training


def merge(model: Module) -> None:
    """Replace every adapter by a plain float32 linear that computes the same; in place."""
    layers = list(adapter_layers(model))
    if not layers:
        raise ConfigError("The model has no adapters to merge.")
    for name, layer in layers:
        model.replace(name, layer.merged())
    model.adapter_config = None
