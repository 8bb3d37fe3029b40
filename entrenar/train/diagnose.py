"""Where a loss or a gradient that is not finite comes from: found by running the batch again and watching it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from entrenar.autograd import Tensor, no_grad
from entrenar.autograd.tape import watching_ops
from entrenar.data import Batch
from entrenar.models.api import LLaMAModel
from entrenar.nn.layers import names_by_weight
from entrenar.observe.events import event, span

HEAD = "lm_head"


@dataclass(frozen=True)
class Nonfinite:
    """What first held NaN or infinity: a result of the operation `op` in the module `layer`, or its weight.

    Its text is what a person reads.
    """

    layer: str
    op: str
    text: str

    def __str__(self) -> str:
        return self.text

    def tell(self, direction: str, step: int | None = None) -> None:
        """Make it an event of the open span; `direction` is forward, backward or update."""
        at = {} if step is None else {"step": step}
        event("nonfinite", **at, layer=self.layer, op=self.op, direction=direction)


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    return bool(np.isfinite(tensor.numpy()).all())


def first_nonfinite_weight(weights: Iterable[tuple[str, Tensor]]) -> Nonfinite | None:
    """The first weight that holds NaN or infinity."""
    name = next((name for name, weight in weights if not is_finite(weight)), None)
    return None if name is None else Nonfinite(name.rpartition(".")[0], "weight", f"the weight {name}")


@no_grad()
def first_nonfinite(model: LLaMAModel, batch: Batch) -> Nonfinite:
    """What first holds NaN or infinity on this batch: a weight, or else the output of a module."""
    plain = [(name, weight) for name, weight in model.named_parameters() if isinstance(weight, Tensor)]
    weight = first_nonfinite_weight(plain)
    if weight is not None:
        return weight
    with span("diagnose"):
        search = _Search(model)
        with model.watching(search.leave, search.enter), watching_ops(search):
            model.hidden_states(batch.tokens, batch.positions, batch.cu_seqlens)
    if search.module is None or search.output is None:
        return Nonfinite(HEAD, "linear_cross_entropy", "the logits of the head")
    return Nonfinite(*search.output, f"the output of {search.module}")


def first_nonfinite_gradient(model: LLaMAModel, losses: Iterable[Callable[[], Tensor]]) -> Nonfinite | None:
    """The operation whose backward first gave NaN or infinity after `losses`, or None; gradients are lost."""
    for _, tensor in model.trainable_parameters():
        tensor.grad = None
    with span("diagnose"):
        search = _Search(model)
        for loss in losses:
            with model.watching(search.leave, search.enter), watching_ops(search):
                loss().backward()
            if search.gradient is not None:
                layer, op = search.gradient
                return Nonfinite(layer, op, f"the backward of {op} in {layer}")
    return None


class _Search:
    """Looks at every output and gradient for the first that is not finite: (module, operation)."""

    def __init__(self, model: LLaMAModel) -> None:
        self.module: str | None = None  # whose output it was
        self.output: tuple[str, str] | None = None
        self.gradient: tuple[str, str] | None = None
        self._entered: list[str] = []
        self._nodes: dict[int, tuple[str, str]] = {}
        self._names = names_by_weight(model)

    def enter(self, name: str) -> None:
        """A module is called."""
        self._entered.append(name)

    def leave(self, name: str, output: Tensor) -> None:
        """It has returned."""
        self._entered.pop()
        if self.module is None and not is_finite(output):
            self.module = name

    def on_output(self, op: str, weight: object, output: Tensor, node: int) -> None:
        """An operation of forward."""
        layer = self._names.get(id(weight)) or (self._entered[-1] if self._entered else HEAD)
        if node:
            self._nodes[node] = (layer, op)
        if self.output is None and not is_finite(output):
            self.output = (layer, op)

    def on_gradient(self, kind: str, node: int, index: int, gradient: Tensor) -> None:
        """What a node's backward added to the gradient of an input."""
        if self.gradient is None and not is_finite(gradient):
            self.gradient = self._nodes.get(node, ("", kind))
