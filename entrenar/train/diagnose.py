"""Where a loss that is not finite comes from: found by running the batch again and watching every module."""

from __future__ import annotations

import numpy as np

from entrenar.autograd import Tensor, no_grad
from entrenar.data import Batch
from entrenar.models.api import LLaMAModel


def _finite(tensor: Tensor) -> bool:
    return bool(np.isfinite(tensor.numpy()).all())


def first_nonfinite_weight(weights: list[tuple[str, Tensor]]) -> str | None:
    """The name of the first weight that holds NaN or infinity."""
    return next((name for name, weight in weights if not _finite(weight)), None)


@no_grad()
def first_nonfinite(model: LLaMAModel, batch: Batch) -> str:
    """What first holds NaN or infinity on this batch: a weight, or else the output of a module."""
    plain = [(name, weight) for name, weight in model.named_parameters() if isinstance(weight, Tensor)]
    name = first_nonfinite_weight(plain)
    if name is not None:
        return f"the weight {name}"
    found: list[str] = []

    def watch(name: str, output: Tensor) -> None:
        if not found and not _finite(output):
            found.append(name)

    with model.watching(watch):
        model.hidden_states(batch.tokens, batch.positions, batch.cu_seqlens)
    return f"the output of {found[0]}" if found else "the logits of the head"
