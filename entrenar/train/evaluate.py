"""Held-out loss and perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from entrenar.autograd import no_grad
from entrenar.autograd.precision import get_matmul_precision, matmul_precision
from entrenar.data import Batch
from entrenar.errors import NumericsError
from entrenar.models.api import LLaMAModel
from entrenar.train.diagnose import first_nonfinite


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy (nats a trained token, by their weights) over `tokens` targets."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """e^loss; infinite where float64 ends."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


def evaluate(model: LLaMAModel, batches: Iterable[Batch], step: int | None = None) -> Evaluation:
    """The mean loss over all targets of `batches`, without dropout and at "high" precision or better.

    NumericsError where it is not finite, of which an event tells `step`, or nothing is trained.
    """
    total, tokens, weight = 0.0, 0, 0.0
    precision = get_matmul_precision()
    with no_grad(), model.evaluating(), matmul_precision("high" if precision == "medium" else precision):
        for batch in batches:
            where = (batch.positions, batch.cu_seqlens)
            loss = model.loss(batch.tokens, batch.targets, *where, reduction="sum", weights=batch.weights)
            if not math.isfinite(loss.item()):
                found = first_nonfinite(model, batch)
                found.tell("forward", step)
                raise NumericsError(
                    f"The held-out loss is {loss.item()}: {found} is not finite; the file is damaged, or training "
                    "diverged."
                )
            total += loss.item()
            tokens += batch.trained_tokens
            weight += batch.trained_weight
    if not tokens:
        raise NumericsError("The held-out set has no trained tokens; hold out more examples.")
    return Evaluation(total / weight, tokens)
