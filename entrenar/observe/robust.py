"""Robust statistics over a window: how far a value lies from the median, in units of the usual scatter; slopes.

Median and MAD as Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993); the slope is Theil and Sen's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

SEVERITIES = ((5.0, "high"), (4.0, "medium"), (3.0, "low"))  # a score of at least
NORMAL_MAD = 1.4826  # sigma / MAD of a normal distribution


def severity(score: float) -> str | None:
    """The name of how unusual a score is; None below 3."""
    return next((name for limit, name in SEVERITIES if score >= limit), None)


@dataclass(frozen=True)
class Score:
    """How far above the usual a value lies: `z` in scatters, `expected` the median of the window."""

    z: float
    expected: float


@dataclass
class Window:
    """The last `size` values of one quantity; a value is scored before it enters, and never against itself.

    The scatter is the larger of MAD and the distance to the `tail` quantile, both as sigmas: step times, losses and
    norms have a long upper tail. It is at least `relative` of the median and at least `absolute`, so that a constant or
    quantised series raises nothing. There is no score before `warm_up` values.
    """

    size: int = 64
    warm_up: int = 16
    relative: float = 0.02
    absolute: float = 0.0
    tail: float = 0.9
    values: deque[float] = field(default_factory=deque)

    def score(self, value: float, enter: bool = True) -> Score | None:
        """The score of `value`, which then enters the window unless told otherwise; None during warm-up."""
        found = self.peek(value)
        if not enter:
            return found
        self.values.append(value)
        if len(self.values) > self.size:
            self.values.popleft()
        return found

    def peek(self, value: float) -> Score | None:
        """The score of `value`, which does not enter; None during warm-up."""
        if len(self.values) < self.warm_up:
            return None
        known = sorted(self.values)
        middle = _quantile(known, 0.5)
        deviation = NORMAL_MAD * _quantile(sorted(abs(each - middle) for each in known), 0.5)
        above = (_quantile(known, self.tail) - middle) / NormalDist().inv_cdf(self.tail)
        scatter = max(deviation, above, self.relative * abs(middle), self.absolute, 1e-300)
        return Score((value - middle) / scatter, middle)

    @property
    def median(self) -> float | None:
        """The median of the window; None where it is empty."""
        return _quantile(sorted(self.values), 0.5) if self.values else None


def _quantile(known: list[float], share: float) -> float:
    """Of sorted values, interpolated between neighbours."""
    place = share * (len(known) - 1)
    below = int(place)
    above = min(below + 1, len(known) - 1)
    return known[below] + (place - below) * (known[above] - known[below])


def slope(values: np.ndarray) -> float:
    """The median of the slopes between all pairs of values, by their index."""
    first, second = np.triu_indices(len(values), 1)
    return float(np.median((values[second] - values[first]) / (second - first)))


def trend(values: np.ndarray) -> float:
    """Mann and Kendall's z: below -2 the values fall, above 2 they rise, in 19 of 20 cases of independent ones."""
    count = len(values)
    first, second = np.triu_indices(count, 1)
    concordant = float(np.sign(values[second] - values[first]).sum())
    return concordant / float(np.sqrt(count * (count - 1) * (2 * count + 5) / 18))
