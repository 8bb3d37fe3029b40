"""A loader that draws from several files by weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from entrenar.data.loader import DataLoader
from entrenar.data.masking import Sample
from entrenar.data.places import compact
from entrenar.errors import ConfigError


@dataclass(frozen=True)
class Mix:
    """How many samples each file has, which stand one file after the other, and each one's weight."""

    counts: tuple[int, ...]
    weights: tuple[float, ...]

    def passed(self, number: int, epochs: int) -> int:
        """Draws from this file in the first `epochs` epochs."""
        return int(self.weights[number] / sum(self.weights) * sum(self.counts) * epochs + 0.5)

    def drawn(self, number: int, epoch: int, seed: int) -> np.ndarray:
        """The samples of this file in an epoch of as many draws as all files have samples.

        Each file is gone through in an order of its own, follows itself in another, and goes on in the next epoch
        where this one ended: no sample comes twice before all of the file have come.
        """
        start, stop = (self.passed(number, passed) for passed in (epoch, epoch + 1))
        count = self.counts[number]
        first = start // count
        passes = [
            np.random.Generator(np.random.Philox(key=[seed, turn], counter=[0, 0, 0, number + 1])).permutation(count)
            for turn in range(first, -(-stop // count))
        ]
        order = np.concatenate([np.zeros(0, np.int64), *passes])[start - first * count : stop - first * count]
        return order + sum(self.counts[:number])


class MixedLoader(DataLoader):
    """A DataLoader whose epochs hold, of each file of `mix`, a share of the samples by its weight."""

    def __init__(self, samples: Sequence[Sample], mix: Mix, *arguments: Any, **options: Any) -> None:
        self.mix = mix
        super().__init__(samples, *arguments, **options)

    def _drawn(self) -> np.ndarray:
        files = range(len(self.mix.counts))
        return np.concatenate([compact(self.mix.drawn(number, self.epoch, self.seed)) for number in files])

    def _rows_before(self) -> int:
        return sum(self.mix.passed(number, self.epoch) for number in range(len(self.mix.counts)))

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, and of which mix."""
        return {**super().state_dict(), "counts": list(self.mix.counts), "weights": list(self.mix.weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As DataLoader's; ConfigError too where the files have other sizes or weights."""
        if (state.get("counts"), state.get("weights")) != (list(self.mix.counts), list(self.mix.weights)):
            raise ConfigError(
                f"The checkpoint drew from files of {state.get('counts')} samples with the weights "
                f"{state.get('weights')}, this run has {list(self.mix.counts)} with {list(self.mix.weights)}; resume "
                "with the same data and weights."
            )
        super().load_state_dict(state)
