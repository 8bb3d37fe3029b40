"""The layers that a LLaMA is made of: thin objects that own weights and call autograd operations."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from entrenar.autograd import Tensor, embedding, linear, rms_norm
from entrenar.autograd.ops.matmul import Product, linear_products
from entrenar.autograd.quantized import QuantizedTensor

Weight = Tensor | QuantizedTensor


class Module:
    """A part of a model: its attributes that are weights or modules are found by name, in the order they were set."""

    def children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of every direct part; the parts of a list are numbered."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{index}", item

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(dotted name, module) of this module and everything below it."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def own_weights(self) -> Iterator[tuple[str, Weight]]:
        """(name, weight) of the weights that this module holds itself."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor | QuantizedTensor):
                yield name, value

    def named_parameters(self) -> Iterator[tuple[str, Weight]]:
        """(Hugging Face name, weight) of every weight, each listed once even where it is used twice."""
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, weight in module.own_weights():
                if id(weight) not in seen:
                    seen.add(id(weight))
                    yield f"{prefix}.{name}" if prefix else name, weight

    def trainable_parameters(self) -> list[tuple[str, Tensor]]:
        """(name, tensor) of the weights that backward computes a gradient for."""
        return [(name, w) for name, w in self.named_parameters() if isinstance(w, Tensor) and w.requires_grad]

    def freeze(self) -> None:
        """Stop every weight from taking gradients."""
        for _, weight in self.named_parameters():
            if isinstance(weight, Tensor):
                weight.requires_grad = False
                weight.grad = None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside the block no module drops anything out; then each is as it was."""
        active = [module for _, module in self.named_modules() if getattr(module, "training", False)]
        for module in active:
            vars(module)["training"] = False
        try:
            yield
        finally:
            for module in active:
                vars(module)["training"] = True

    def replace(self, name: str, module: Module) -> None:
        """Put `module` in the place of the part with this dotted name."""
        *path, last = name.split(".")
        parent: object = self
        for part in path:
            parent = parent[int(part)] if isinstance(parent, list) else getattr(parent, part)
        if isinstance(parent, list):
            parent[int(last)] = module
        else:
            setattr(parent, last, module)


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


def random_weights(seed: int, std: float) -> Callable[[str, tuple[int, ...]], Tensor]:
    """Initial weights by name: normal with `std` for matrices, ones for norms; each name has its own random stream."""

    def make(name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            return Tensor.from_numpy(np.ones(shape, np.float32), requires_grad=True)
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()  # long names that differ only in the middle
        stream = np.random.Generator(np.random.Philox(key=[seed, int.from_bytes(digest, "little")]))
        values = stream.standard_normal(shape, np.float32)
        values *= np.float32(std)
        return Tensor.from_numpy(values, requires_grad=True)

    return make
