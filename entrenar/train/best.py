"""Which of the evaluations of a run is the best, and for how many in a row there was no better one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from entrenar.train.step import StepReport


def best(reports: Sequence[StepReport]) -> StepReport | None:
    """The first report with the lowest held-out loss; None where no step was evaluated."""
    evaluated = [report for report in reports if report.held_out is not None]
    return min(evaluated, key=_loss, default=None)


def without_better(reports: Sequence[StepReport], threshold: float) -> int:
    """Evaluations in a row, the last among them, whose loss is not below the lowest before by more than `threshold`.

    The counter of transformers' EarlyStoppingCallback.
    """
    lowest, count = math.inf, 0
    for report in reports:
        if report.held_out is not None:
            count = 0 if lowest - _loss(report) > threshold else count + 1
            lowest = min(lowest, _loss(report))
    return count


def _loss(report: StepReport) -> float:
    assert report.held_out is not None
    return report.held_out.loss
