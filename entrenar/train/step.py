"""StepReport: what one optimizer step did."""

from __future__ import annotations

from dataclasses import dataclass

from entrenar.train.evaluate import Evaluation


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did. `seconds` is its wall time, `tokens` the tokens that ran, trained or not."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    trained_tokens: int
    seconds: float
    held_out: Evaluation | None = None
