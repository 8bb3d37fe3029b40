"""What a run minimises: cross-entropy of the next token, or a loss over preferences (preference.py)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from entrenar.autograd import Tensor
from entrenar.data import Batch
from entrenar.models.api import LLaMAModel
from entrenar.train.evaluate import Evaluation, evaluate


class Objective:
    """The mean cross-entropy over trained tokens by their weights; a subclass has another loss."""

    of_tokens: ClassVar[bool] = True  # whether e^loss is a perplexity

    def loss(self, model: LLaMAModel, batch: Batch, total: float) -> Tensor:
        """The loss of a micro-batch, as its share of that of a step whose trained tokens weigh `total`."""
        return model.loss(
            batch.tokens, batch.targets, batch.positions, batch.cu_seqlens, divisor=total, weights=batch.weights
        )

    def weight(self, batch: Batch) -> float:
        """What a micro-batch adds to the `total` of its step."""
        return batch.trained_weight

    def evaluate(self, model: LLaMAModel, batches: Iterable[Batch], step: int | None = None) -> Evaluation:
        """The held-out loss; raises as `entrenar.train.evaluate.evaluate`."""
        return evaluate(model, batches, step)
