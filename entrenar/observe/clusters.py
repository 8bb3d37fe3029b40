"""Kinds of steps: KMeans (scikit-learn) over what each step took, the number of kinds by silhouette."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from entrenar.errors import ConfigError
from entrenar.observe.anomaly import Step

MOST, CLEAR, SEED = 6, 0.5, 0  # clusters; a silhouette below CLEAR is one cluster (Kaufman and Rousseeuw, 1990)
FEW = 12  # steps, below which nothing is told apart


@dataclass(frozen=True)
class Cluster:
    """Steps that are alike; `seconds` is the median of a step's, `share` of each phase in it by name."""

    steps: list[int]
    seconds: float
    share: dict[str, float]


@dataclass(frozen=True)
class Clusters:
    """All of them, the fastest first; `silhouette` is None where there is but one."""

    found: list[Cluster]
    silhouette: float | None

    @property
    def high_latency(self) -> Cluster | None:
        """The slowest, where it is slower than the rest."""
        return self.found[-1] if len(self.found) > 1 and self.found[-1].seconds > self.found[0].seconds else None


def cluster(steps: Sequence[Step]) -> Clusters:
    """Group the steps by the logarithms of their seconds and of those of their phases.

    ConfigError where scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise ConfigError(f"entrenar analyze needs scikit-learn ({error}); pip install 'entrenar[analyze]'.") from error
    values = _features(steps)
    best, labels = 0.0, np.zeros(len(steps), np.int64)
    for count in range(2, min(MOST, len(steps) // 2, len(np.unique(values, axis=0))) + 1 if len(steps) >= FEW else 2):
        tried = KMeans(count, n_init=10, random_state=SEED).fit_predict(values)
        score = float(silhouette_score(values, tried))
        if score > best:
            best, labels = score, tried
    if best < CLEAR:
        labels = np.zeros(len(steps), np.int64)
    found = [_cluster([step for step, at in zip(steps, labels, strict=True) if at == label]) for label in set(labels)]
    return Clusters(sorted(found, key=lambda each: each.seconds), best if len(found) > 1 else None)


def _features(steps: Sequence[Step]) -> np.ndarray:
    """A row a step. Of phases those that are a twentieth of a step or more; what scatters by less counts as less."""
    total = sum(step.seconds for step in steps)
    names = sorted({name for step in steps for name in step.phases})
    names = [name for name in names if sum(step.phases.get(name, 0.0) for step in steps) >= 0.05 * total]
    rows = [[step.seconds, *(step.phases.get(name, 0.0) for name in names)] for step in steps]
    return np.log(np.maximum(np.array(rows, float), 1e-6))


def _cluster(steps: Sequence[Step]) -> Cluster:
    seconds = float(np.median([step.seconds for step in steps]))
    names = {name: None for step in steps for name in step.phases}
    total = sum(step.seconds for step in steps)
    share = {name: sum(step.phases.get(name, 0.0) for step in steps) / max(total, 1e-12) for name in names}
    return Cluster([step.step for step in steps], seconds, share)
