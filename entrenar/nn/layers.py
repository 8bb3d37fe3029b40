"""The layers that models are made of: thin objects that own weights and call autograd operations."""

from __future__ import annotations

import numpy as np

from entrenar.autograd import Tensor, embedding, linear, rms_norm
from entrenar.autograd.ops.matmul import Product, linear_products
from entrenar.nn.module import Module, Weight


class Linear(Module):
    """y = x W^T with W (out_features, in_features) in float32, bfloat16 or codes."""

    def __init__(self, weight: Weight) -> None:
        self.weight = weight

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.weight.shape[0]

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.weight.shape[1]

    def __call__(self, x: Tensor, product: Product | None = None) -> Tensor:
        """y; `product` is x W^T where `together` computed it."""
        return linear(x, self.weight, product=product)


def together(x: Tensor, *layers: Linear) -> list[Tensor]:
    """What each of the layers makes of the same x, which is packed for their multiplications once."""
    products = linear_products(x, [layer.weight for layer in layers])
    return [layer(x, product) for layer, product in zip(layers, products, strict=True)]


class Embedding(Module):
    """Rows of W (vocabulary, hidden) looked up by token id; that of `padding` takes no gradient."""

    def __init__(self, weight: Weight, padding: int | None = None) -> None:
        self.weight, self.padding = weight, padding

    def __call__(self, tokens: np.ndarray) -> Tensor:
        return embedding(tokens, self.weight, self.padding)


class RMSNorm(Module):
    """y = x / rms(x) * weight over the last axis."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    def __call__(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)
