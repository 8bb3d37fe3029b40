"""StepReport: what one optimizer step did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from entrenar.train.evaluate import Evaluation


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did. `seconds` is its wall time, `tokens` the tokens that ran, trained or not.

    `phases` are the seconds of its parts, `resources` what the machine gave it, where it was watched:
    measurements, which do not make reports differ.
    """

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    trained_tokens: int
    seconds: float
    held_out: Evaluation | None = None
    phases: Mapping[str, float] = field(default_factory=dict, compare=False)
    resources: Mapping[str, float] = field(default_factory=dict, compare=False)
