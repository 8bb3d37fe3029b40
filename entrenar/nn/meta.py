"""Weights without values: a module tree built over them costs nothing and says what it is made of."""

from __future__ import annotations

from typing import cast

from entrenar.nn.module import Weight


class MetaWeight:
    """The shape of a weight; no memory, no values (as PyTorch's meta device)."""

    requires_grad = False

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape


class MetaWeights:
    """A weight provider that allocates nothing and records (name -> shape) of what was asked for, in that order."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __call__(self, name: str, shape: tuple[int, ...]) -> Weight:
        self.shapes[name] = shape
        return cast(Weight, MetaWeight(shape))
