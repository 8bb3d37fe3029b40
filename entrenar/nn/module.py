"""Module: a tree of named parts that own weights, walked by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from entrenar.autograd import Tensor
from entrenar.autograd.quantized import QuantizedTensor

Weight = Tensor | QuantizedTensor


class Module:
    """A part of a model: its attributes that are weights or modules are found by name, in the order they were set."""

    adapter_config: Any = None  # of the adapters that are on the tree
    unquantized: Mapping[str, str] = MappingProxyType({})  # matrices that stayed in full precision, and why

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

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight by name, each listed once even where it is used twice."""
        return {name: weight.shape for name, weight in self.named_parameters()}

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
