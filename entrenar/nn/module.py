"""Module: a tree of named parts that hold weights, visited by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from entrenar.autograd import Tensor
from entrenar.autograd.quantized import QuantizedTensor

Weight = Tensor | QuantizedTensor


IN_PLACE_OF = {  # names of torch.nn.Module
    "state_dict": "named_parameters() gives names and tensors, save_pretrained writes them",
    "load_state_dict": "from_pretrained reads a model's files, entrenar.lora.load_adapter those of an adapter",
    "zero_grad": "the optimizer's zero_grad() takes the gradients away",
    "to": "everything is in main memory; from_pretrained(dtype=...) says in which type",
    "cuda": "everything is in main memory",
    "cpu": "everything is in main memory",
    "half": "from_pretrained(dtype='float16') stores frozen weights so",
    "bfloat16": "from_pretrained(dtype='bfloat16') stores frozen weights so",
    "float": "from_pretrained(dtype='float32') stores weights so",
    "forward": "call the object itself",
    "requires_grad_": "each tensor's requires_grad says whether it is trained",
}


class Module:
    """A part of a model: its attributes that are weights or modules are found by name, in the order they were set."""

    watched: ClassVar[bool] = True  # whether `watching` is told of its outputs
    adapter_config: Any = None  # of the adapters that are on the tree
    unquantized: Mapping[str, str] = MappingProxyType({})  # matrices that stayed in full precision, and why

    originals: Callable[[str], np.ndarray | None] | None = None  # what `original` asks

    if not TYPE_CHECKING:  # types are checked against the attributes that there are

        def __getattr__(self, name: str) -> Any:
            """What torch has and a part of a model has not is answered with what serves in its place."""
            advice = f"; {IN_PLACE_OF[name]}" if name in IN_PLACE_OF else ""
            raise AttributeError(f"{type(self).__name__} has no {name}{advice}.", name=name, obj=self)

    def original(self, name: str) -> np.ndarray | None:
        """The full-precision values that a quantized weight of this name was made of; None where they are not known."""
        return None if self.originals is None else self.originals(name)

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

    def parameters(self) -> Iterator[Tensor]:
        """The weights that backward computes a gradient for, as an optimizer takes them."""
        return (tensor for _, tensor in self.trainable_parameters())

    def train(self, mode: bool = True) -> Module:
        """Switch dropout on, or off where `mode` is False; returns the module."""
        for _, module in self.named_modules():
            if hasattr(module, "training"):
                vars(module)["training"] = mode
        return self

    def eval(self) -> Module:
        """Switch dropout off; returns the module."""
        return self.train(False)

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

    @contextmanager
    def watching(self, watch: Callable[[str, Any], None], enter: Callable[[str], None] | None = None) -> Iterator[None]:
        """Inside the block `watch(name, output)` gets what every module below this one returns, innermost first.

        `enter(name)` is called before the module. Linears are left out: those that read the same input are computed
        together.
        """
        parts = [(name, part) for name, part in self.named_modules() if name and part.watched and callable(part)]
        for name, part in reversed(parts):  # a part is replaced before the module that holds it
            self.replace(name, _Watched(name, part, watch, enter))
        try:
            yield
        finally:
            for name, part in parts:
                self.replace(name, part)

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


class _Watched(Module):
    """In a module's place while `watching`: calls it, and shows what it returns."""

    def __init__(
        self, name: str, part: Any, watch: Callable[[str, Any], None], enter: Callable[[str], None] | None
    ) -> None:
        self._name, self._part, self._watch, self._enter = name, part, watch, enter

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self._enter is not None:
            self._enter(self._name)
        output = self._part(*args, **options)
        self._watch(self._name, output)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)
