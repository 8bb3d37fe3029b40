"""The layers that models are made of: thin objects that hold weights and call autograd operations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from entrenar.autograd import LowRankUpdate, Tensor, embedding, grouped_linear, linear, rms_norm
from entrenar.nn.module import Module, Weight


class Linear(Module):
    """y = x W^T + bias with W (out_features, in_features) in any weight type, and bias (out_features,).

    An adapter is a subclass: it changes the input in `prepare`, the product in `terms`, or the output in `finish`.
    """

    watched = False
    alters = False  # whether the kind changes what goes into the product or what comes out of it

    def __init_subclass__(cls) -> None:
        cls.alters = cls.prepare is not Linear.prepare or cls.finish is not Linear.finish

    def __init__(self, weight: Weight, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.weight.shape[1]

    def prepare(self, x: Tensor) -> Tensor:
        """What is multiplied by W^T in the place of x (..., in_features)."""
        return x

    def terms(self) -> tuple[Weight, Tensor | None, LowRankUpdate | None]:
        """The weight, the bias and the low-rank update of the product, as `grouped_linear` takes them."""
        return self.weight, self.bias, None

    def finish(self, y: Tensor, x: Tensor, prepared: Tensor) -> Tensor:
        """The output of the layer from the product's y (..., out_features); x is its input, `prepared` what of it."""
        return y

    def __call__(self, x: Tensor) -> Tensor:
        if self.alters:
            return _altered(x, (self,))[0]
        weight, bias, update = self.terms()
        return linear(x, weight, bias) if update is None else grouped_linear(x, [weight], [bias], [update])[0]


def grouped(x: Tensor, *layers: Linear) -> list[Tensor]:
    """The output of each layer for the same x, which is packed once for all that multiply x itself."""
    for layer in layers:
        if layer.alters:
            return _altered(x, layers)
    return _products(x, layers)


def _products(x: Tensor, layers: Sequence[Linear]) -> list[Tensor]:
    """The product of each layer with x; loops, as a decoded token spends microseconds here."""
    weights, biases, updates = [], [], []
    for layer in layers:
        weight, bias, update = layer.terms()
        weights.append(weight)
        biases.append(bias)
        updates.append(update)
    return grouped_linear(x, weights, biases, updates)


def _altered(x: Tensor, layers: Sequence[Linear]) -> list[Tensor]:
    """`grouped` where a layer changes its input, so that it has a product of its own, or its output."""
    inputs = [layer.prepare(x) for layer in layers]
    if all(item is x for item in inputs):
        products = _products(x, layers)
    else:
        products = [_products(item, [layer])[0] for item, layer in zip(inputs, layers, strict=True)]
    return [layer.finish(y, x, item) for layer, y, item in zip(layers, products, inputs, strict=True)]


class Embedding(Module):
    """Rows of W (vocabulary, hidden) looked up by token id, times `scale`; that of `padding` takes no gradient.

    The scale is rounded to the elements of W, as transformers rounds it.
    """

    def __init__(self, weight: Weight, padding: int | None = None, scale: float | None = None) -> None:
        self.weight, self.padding, self.scale = weight, padding, scale

    def __call__(self, tokens: np.ndarray) -> Tensor:
        rows = embedding(tokens, self.weight, self.padding)
        if self.scale is None:
            return rows
        bfloat16 = isinstance(self.weight, Tensor) and self.weight.dtype == "bfloat16"
        return rows * (_rounded_to_bfloat16(self.scale) if bfloat16 else self.scale)


def _rounded_to_bfloat16(value: float) -> float:
    """The nearest float of 8 significant bits, ties to even."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 256), exponent - 8)


class RMSNorm(Module):
    """y = x / rms(x) * weight over the last axis; with `offset` times 1 + weight."""

    def __init__(self, weight: Tensor, eps: float, offset: bool = False) -> None:
        self.weight = weight
        self.eps, self.offset = eps, offset

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight + 1.0 if self.offset else self.weight, self.eps)

    def saved_floats(self) -> int:
        """Floats a token that forward saves for backward: x and 1 / rms(x)."""
        return self.weight.shape[0] + 1


def names_by_weight(tree: Module) -> dict[int, str]:
    """The name of each linear below `tree` by the `id` of its weights: what an operation shows is the weight."""
    linears = [(name, part) for name, part in tree.named_modules() if isinstance(part, Linear)]
    return {id(weight): name for name, part in linears for _, weight in part.own_weights()}
