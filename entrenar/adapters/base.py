"""What every kind of adapter is: a layer on a frozen linear, and a configuration that says which linears get one.

A kind is a file with a subclass of `Adapter` and one of `AdapterConfig`, and its section in `entrenar.config`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np

from entrenar.adapters.options import AdapterOptions
from entrenar.adapters.peft_table import PeftTable
from entrenar.adapters.peft_weights import PREFIX
from entrenar.adapters.targets import Shaped
from entrenar.autograd import Tensor
from entrenar.autograd.quantized import QuantizedTensor
from entrenar.config import check_dataclass
from entrenar.errors import ConfigError, MemoryBudgetError
from entrenar.nn.layers import Linear
from entrenar.nn.module import Module, Weight
from entrenar.nn.quantize import merge_sentence
from entrenar.observe.hardware import available_memory

Config = TypeVar("Config", bound="AdapterConfig")


@runtime_checkable
class Trained(Protocol):
    """A module with weights of an adapter."""

    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, weight) of the trained weights, named and shaped as in PEFT's files."""


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
    def from_base(
        cls,
        base: Linear,
        config: Any,
        settings: Any,
        rng: np.random.Generator,
        original: Callable[[], np.ndarray | None],
    ) -> Adapter:
        """A new adapter on `base`; `settings` is what `config.layers` has for it, `rng` draws its initial weights.

        `original` gives the full-precision values that a quantized weight was made of, None where there are none.
        """

    @abstractmethod
    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, weight) of the trained weights, named and shaped as in PEFT's files."""

    @abstractmethod
    def merged(self) -> Linear:
        """A plain float32 linear that computes the same; a quantized weight or one of 16 bits is dequantized for it."""

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


class AdapterConfig(AdapterOptions, ABC):
    """The settings of one kind, a dataclass. Raises ConfigError for a value out of range."""

    title: ClassVar[str]  # what people call the kind
    peft: ClassVar[PeftTable]  # its adapter_config.json

    def __post_init__(self) -> None:
        check_dataclass(self, self.section)

    # ------------------------------------------------------------------ what a kind says
    @abstractmethod
    def adapter_shapes(self, model: Shaped) -> dict[str, tuple[int, ...]]:
        """The shape of every trained weight by its name in the model, in the model's order.

        ConfigError where a setting names what the model does not have, or what gets no adapter.
        """

    @abstractmethod
    def activation_floats(self, model: Shaped) -> int:
        """Floats a token that the adapters of one decoder layer save for backward, of the layer where that is most."""

    @abstractmethod
    def install(self, model: Module, seed: int) -> None:
        """Put adapters on a frozen model that `adapter_shapes` accepts; `seed` draws their initial weights."""

    def resolved(self: Config, model: Module) -> Config:
        """The configuration as the files of adapters on this model say it."""
        return self

    def merge_into(self, model: Module) -> None:
        """Replace every adapter by what computes the same without it; ConfigError where there is no such thing."""
        for name, layer in list(adapter_layers(model)):
            model.replace(name, layer.merged())

    def check_use(self) -> None:
        """ConfigError for a setting of a run that has no effect beside the others."""

    def storage_options(self) -> dict[str, Any]:
        """What the section says of the base's storage: options of StoragePolicy."""
        return {}

    def trains_logits(self, model: Shaped) -> bool:
        """Whether the matrix that makes the logits is trained."""
        return False

    def remarks(self, model: Module) -> list[str]:
        """What a run over this model, with these adapters on it, should say, a sentence each."""
        return []

    @property
    def added_positions(self) -> int:
        """Positions of the context that the adapter takes before every sequence."""
        return 0

    def named_in_budget(self) -> tuple[str, str]:
        """What a budget calls the adapters, and how they get smaller."""
        return f"The {self.title} adapters", "use fewer target modules"

    # ------------------------------------------------------------------ PEFT's files
    def file_names(self, model: Shaped) -> dict[str, str]:
        """What a file calls each weight of `adapter_shapes`, PREFIX apart, where that is not its name."""
        return {}

    def file_shapes(self, model: Shaped) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of an adapter_model.safetensors by name; raises as `adapter_shapes`."""
        names = self.file_names(model)
        return {f"{PREFIX}{names.get(name, name)}": shape for name, shape in self.adapter_shapes(model).items()}

    def file_arrays(self, model: Module) -> dict[str, np.ndarray]:
        """The tensors of adapter_model.safetensors from a model with these adapters."""
        weights, names = tensors_of(model), self.file_names(model)
        return {f"{PREFIX}{names.get(name, name)}": weights[name].numpy() for name in self.adapter_shapes(model)}

    def load_arrays(self, model: Module, arrays: Mapping[str, np.ndarray]) -> None:
        """Give a model with these adapters the values of a file's tensors, by their names without PREFIX."""
        weights, names = tensors_of(model), self.file_names(model)
        for name in self.adapter_shapes(model):
            weights[name].numpy()[...] = arrays[names.get(name, name)]

    def to_peft(self, base_model: str | None = None) -> dict[str, Any]:
        """The content of an adapter_config.json, which a kind completes."""
        return {
            "peft_type": self.peft.peft_type,
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "inference_mode": True,
        }

    @classmethod
    def from_peft(cls: type[Config], table: Mapping[str, Any], where: str = "adapter_config.json") -> Config:
        """From an adapter_config.json; ConfigError, naming the setting, for what entrenar does not compute."""
        settings = cls.peft.settings_of(table, where)
        try:
            return cls(**settings)
        except ConfigError as error:
            raise ConfigError(f"{where}: {cls.peft.in_terms_of_peft(str(error), cls.section)}") from error

    # ------------------------------------------------------------------ what follows for every kind
    def num_parameters(self, model: Shaped) -> int:
        """The exact number of trained weights on a model of this shape."""
        return sum(math.prod(shape) for shape in self.adapter_shapes(model).values())

    def apply(self, model: Module, seed: int = 0) -> None:
        """Freeze `model` and put the adapters on it, in place.

        `seed` draws initial weights. Raises ConfigError where the model has adapters already, or a setting names what
        it does not have; MemoryBudgetError where the adapters cannot fit.
        """
        check_no_adapters(model)
        needed, available = 4 * self.num_parameters(model), available_memory()
        if needed > available:
            what, advice = self.named_in_budget()
            raise MemoryBudgetError(
                f"{what} need {needed / 2**30:.1f} GiB and {available / 2**30:.1f} GiB is available; {advice}."
            )
        model.freeze()
        config = self.resolved(model)
        config.install(model, seed)
        model.adapter_config, model.originals = config, None  # what adapters begin with is chosen


def copied(names: list[str] | str) -> list[str] | str:
    """A setting of names that shares nothing with another."""
    return names if isinstance(names, str) else list(names)


# ---------------------------------------------------------------------- adapters on a module tree
def base_shapes(model: Shaped) -> dict[str, tuple[int, ...]]:
    """The shape of every weight of the base by name; a model may have adapters already."""
    shapes = dict(model.parameter_shapes())
    if isinstance(model, Module):
        own = {
            f"{name}.{part}"
            for name, module in model.named_modules()
            if isinstance(module, Trained)
            for part, _ in module.adapter_weights()
        }
        shapes = {name: shape for name, shape in shapes.items() if name not in own}
    return shapes


def tensors_of(model: Module) -> dict[str, Tensor]:
    """The weights that are not quantized, by name."""
    return {name: weight for name, weight in model.named_parameters() if isinstance(weight, Tensor)}


def adapter_layers(model: Module) -> Iterator[tuple[str, Adapter]]:
    """(name, layer) of every adapter on the model."""
    for name, module in model.named_modules():
        if isinstance(module, Adapter):
            yield name, module


def check_no_adapters(model: Module) -> None:
    """ConfigError where the model has adapters already."""
    if model.adapter_config is not None:
        raise ConfigError(
            f"The model already has {model.adapter_config.title} adapters; load the base again to add others."
        )


def set_training(model: Module, training: bool) -> None:
    """Switch the adapters' dropout on for training or off for evaluation."""
    for _, layer in adapter_layers(model):
        layer.training = training


def merge(model: Module) -> str:
    """Replace every adapter by a plain float32 linear that computes the same, in place; says what precision is kept."""
    if model.adapter_config is None:
        raise ConfigError("The model has no adapters to merge.")
    matrices = [layer.weight for _, layer in adapter_layers(model)]
    model.adapter_config.merge_into(model)
    model.adapter_config = None
    return merge_sentence(matrices)
