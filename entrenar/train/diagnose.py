"""Where a loss that is not finite comes from: found by running the batch again, a layer at a time."""

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
    """What first holds NaN or infinity on this batch: a weight, or else the output of an operation of a layer."""
    plain = [(name, weight) for name, weight in model.named_parameters() if isinstance(weight, Tensor)]
    name = first_nonfinite_weight(plain)
    if name is not None:
        return f"the weight {name}"
    rotary = model._rotary_embedding(batch.tokens, batch.positions)
    x = model.model.embed_tokens(batch.tokens)
    for index, layer in enumerate(model.model.layers):
        x = x + layer.self_attn(layer.input_layernorm(x), rotary, batch.cu_seqlens, None)
        if not _finite(x):
            return f"the output of model.layers.{index}.self_attn"
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        if not _finite(x):
            return f"the output of model.layers.{index}.mlp"
    return "the logits of the head"
