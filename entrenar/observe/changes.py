"""Change points of a series of runs: where they became slower, by how much, and how sure that is.

A run has the values of its repetitions. Their normal scores over the whole series (van der Waerden: ranks as quantiles
of the normal distribution, so that an outlier counts no more than the largest value), averaged by run, are compared
before and after every place where a change may be; the largest standardized difference is held against its
distribution under permutations of the runs. That is exact for any noise, as long as runs without a change are
exchangeable. Stopping early is Besag and Clifford's, Sequential Monte Carlo p-values (1991); several changes are found
by binary segmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np

FEWEST = 3  # runs on each side of a change
LEVEL = 0.0025  # false alarms of a series without a change: 20 of them stay quiet in 95 of 100 cases
FAMILY = 0.05  # false alarms of all series together, where there are more than 20
DRAWS, HITS, CHUNK = 19_999, 20, 500  # permutations at most; as extreme ones that end the drawing; at a time
RESAMPLES = 400
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Change:
    """Runs from number `first` on differ from those before it, back to the change before.

    `p` is how often so large a difference occurs without a change. `size` is the shift of the values, above 0 upwards,
    with its 95 % interval; `places` the earliest and the latest run at which the change may be.
    """

    first: int
    p: float
    size: float
    interval: tuple[float, float]
    places: tuple[int, int]


def level_of(series: int) -> float:
    """The level of each of so many series."""
    return min(LEVEL, FAMILY / max(series, 1))


def scores(runs: Sequence[np.ndarray]) -> np.ndarray:
    """Of each run, the mean of its values' normal scores in the whole series; they sum to 0. Ties share a rank."""
    values = np.concatenate(runs)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    lengths = np.array([len(run) for run in runs])
    sums = np.add.reduceat(quantiles(len(values))[(2 * ranks - 2).astype(int)], np.cumsum(lengths) - lengths)
    return np.asarray(sums / lengths - (sums / lengths).mean())


@cache
def quantiles(count: int) -> np.ndarray:
    """Those of the normal distribution at the ranks 1, 1.5, 2 to `count`."""
    normal = NormalDist()
    return np.array([normal.inv_cdf(rank / (2 * count + 2)) for rank in range(2, 2 * count + 1)])


def differences(found: np.ndarray, places: np.ndarray) -> np.ndarray:
    """How much higher the scores are from each place on than before it, in standard deviations under permutations."""
    count = found.shape[-1]
    before = np.cumsum(found, axis=-1)[..., places - 1]
    variance = places * (count - places) / (count * (count - 1)) * np.sum(found * found, axis=-1, keepdims=True)
    return np.asarray(-before / np.sqrt(np.maximum(variance, 1e-300)))


def p_value(found: np.ndarray, places: np.ndarray, level: float, generator: np.random.Generator) -> tuple[int, float]:
    """The place of the largest rise, and how often permutations have one as large."""
    rises = differences(found, places)
    place, largest = int(places[rises.argmax()]), float(rises.max()) - 1e-9
    if largest <= 0:
        return place, 1.0
    hits = drawn = 0
    draws = max(DRAWS, int(10 / level))
    while drawn < draws:
        count = min(CHUNK, draws - drawn)
        permuted = generator.permuted(np.tile(found, (count, 1)), axis=1)
        above = np.flatnonzero(differences(permuted, places).max(axis=1) >= largest)
        if hits + len(above) >= HITS:
            return place, HITS / (drawn + int(above[HITS - hits - 1]) + 1)
        hits, drawn = hits + len(above), drawn + count
    return place, (hits + 1) / (drawn + 1)


def changes(
    runs: Sequence[np.ndarray],
    places: Sequence[int],
    level: float = LEVEL,
    seed: int = 0,
    score: np.ndarray | None = None,
) -> list[Change]:
    """The changes of a series in either direction, first to last; `level` is that of each direction.

    `places` are the numbers of the runs that a change may come with, those between the first runs of two commits.
    `score` replaces the runs' own scores, where several series are judged together.
    """
    generator = np.random.default_rng(seed)
    found: dict[int, float] = {}

    def segment(start: int, stop: int) -> None:
        inside = np.array([place - start for place in places if start + FEWEST <= place <= stop - FEWEST], dtype=int)
        if not len(inside):
            return
        part = scores(runs[start:stop]) if score is None else score[start:stop] - score[start:stop].mean()
        if not np.any(np.abs(part) > 1e-12):
            return
        both = [p_value(side, inside, level, generator) for side in (part, -part)]
        place, p = min(both, key=lambda pair: pair[1])
        if p <= level:
            found[start + place] = p
            segment(start, start + place)
            segment(start + place, stop)

    segment(0, len(runs))
    edges = [0, *sorted(found), len(runs)]
    return [
        _change(runs[edges[i - 1] : edges[i + 1]], edges[i - 1], first, places, found[first], generator)
        for i, first in enumerate(edges[1:-1], 1)
    ]


def shift(before: np.ndarray, after: np.ndarray) -> float:
    """The median of the differences between all pairs (Hodges and Lehmann)."""
    return float(np.median(after[:, None] - before[None, :]))


def _change(
    runs: Sequence[np.ndarray],
    start: int,
    first: int,
    places: Sequence[int],
    p: float,
    generator: np.random.Generator,
) -> Change:
    """Its size and its place with intervals: runs of each side are drawn again (bootstrap)."""
    cut = first - start
    inside = np.array([place - start for place in places if FEWEST <= place - start <= len(runs) - FEWEST], dtype=int)
    medians = np.array([np.median(run) for run in runs])
    size = shift(medians[:cut], medians[cut:])
    sizes, found = [], []
    for _ in range(RESAMPLES):
        chosen = [*generator.integers(0, cut, cut), *generator.integers(cut, len(runs), len(runs) - cut)]
        sizes.append(shift(medians[chosen[:cut]], medians[chosen[cut:]]))
        if len(inside) > 1:
            part = scores([runs[place] for place in chosen])
            found.append(start + int(inside[np.argmax(np.sign(size) * differences(part, inside))]))
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    low, high = np.quantile(sizes, tails)
    earliest, latest = np.quantile(found, tails, method="nearest") if found else (first, first)
    return Change(first, p, size, (float(low), float(high)), (min(int(earliest), first), max(int(latest), first)))
