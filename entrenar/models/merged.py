"""The weights of a model without its adapters: each that one is on is merged when it is asked for, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from entrenar.errors import ConfigError
from entrenar.nn.module import Module, Weight
from entrenar.nn.quantize import merge_sentence

if TYPE_CHECKING:
    from entrenar.models.api import LLaMAModel


class Mergeable(Protocol):
    """A module with an adapter."""

    def merged(self) -> Module:
        """A plain module that computes the same."""


@dataclass(frozen=True)
class PlainWeight:
    """A weight by Hugging Face name. `base` is what the model holds; `adapter` the module that changes it."""

    name: str
    base: Weight
    adapter: Mergeable | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight, merged or not."""
        return tuple(self.base.shape)

    def load(self) -> Weight:
        """The weight, in float32 where an adapter is merged into it."""
        if self.adapter is None:
            return self.base
        return dict(self.adapter.merged().own_weights())[self.name.split(".")[-1]]


def plain_weights(model: LLaMAModel, *, merge: bool) -> list[PlainWeight]:
    """Every weight of the configuration, in the tree's order.

    Raises ConfigError for adapters where `merge` is false, and for those that are no change of weights.
    """
    expected = model.config.parameter_shapes()
    if not merge:
        refuse_adapters(model)
    weights = list(_weights(model))
    for weight in weights:
        if weight.name not in expected and weight.adapter is None:
            kind = "adapter" if model.adapter_config is None else f"{model.adapter_config.title} adapter"
            raise ConfigError(
                f"The model's {kind} ({weight.name}) is no change of weights and cannot be merged; run it in "
                "transformers with PEFT."
            )
    return [weight for weight in weights if weight.name in expected]


def _weights(model: LLaMAModel) -> Iterator[PlainWeight]:
    for prefix, module in model.named_modules():
        adapter = cast(Mergeable, module) if hasattr(module, "merged") else None
        for name, weight in module.own_weights():
            yield PlainWeight(f"{prefix}.{name}", weight, adapter)


def refuse_adapters(model: LLaMAModel) -> None:
    """ConfigError where adapters are still attached."""
    expected = model.config.parameter_shapes()
    adapters = [name for name, _ in model.named_parameters() if name not in expected]
    if adapters:
        kind = "" if model.adapter_config is None else f"{model.adapter_config.title} "
        raise ConfigError(
            f"The model still has {kind}adapters ({adapters[0]}); merge them or save the adapter instead."
        )


def merge_sentences(weights: list[PlainWeight]) -> list[str]:
    """What precision merging keeps, in one sentence; none where nothing is merged."""
    merged = [weight.base for weight in weights if weight.adapter is not None and len(weight.shape) == 2]
    return [merge_sentence(merged)] if merged else []
