"""Batches without end, in an order that follows from seed and epoch, from any point of which a run can resume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

from entrenar.data.masking import Sample
from entrenar.data.packing import Batch, Rows, collate, pack
from entrenar.data.places import compact
from entrenar.data.samples import Samples
from entrenar.errors import ConfigError

NEARBY = 50  # batches among whose samples those of like length are put together


def _lengths(samples: Sequence[Sample]) -> np.ndarray:
    if isinstance(samples, Samples):
        return compact(samples.lengths)
    return compact(np.fromiter((len(sample) for sample in samples), np.int64, len(samples)))


def _rows(lengths: np.ndarray, sequence_length: int, packing: bool) -> Rows:
    count = len(lengths)
    return pack(lengths, sequence_length) if packing else Rows(np.arange(count), np.arange(count + 1))


def _collated(
    samples: Sequence[Sample], rows: Sequence[Sequence[int]], sequence_length: int, packing: bool, pad_id: int
) -> Batch:
    chosen = [[samples[i] for i in row] for row in rows]
    if not packing:
        sequence_length = min(sequence_length, max(2, *(len(sample) for row in chosen for sample in row)))
    return collate(chosen, sequence_length, pad_id)


class DataLoader:
    """Batches of `batch_size` rows of `sequence_length` tokens, shuffled anew each epoch by (seed, epoch).

    With `packing`, several samples share a row; without, one sample has one, samples of like length share a batch, and
    its rows are as long as the longest of them. Samples longer than `sequence_length` are cut (`truncated` counts
    them). Raises ConfigError where nothing would be trained or no batch can be filled.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        batch_size: int,
        sequence_length: int,
        *,
        seed: int = 0,
        packing: bool = True,
        pad_id: int = 0,
    ) -> None:
        self.samples, self.batch_size, self.sequence_length = samples, batch_size, sequence_length
        self.seed, self.packing, self.pad_id = seed, packing, pad_id
        self._lengths = _lengths(samples)
        self.epoch, self.position = 0, 0
        marks, self.truncated = np.zeros(len(samples), np.int32), 0
        for index, sample in enumerate(samples):
            marks[index] = sample.trained[1:sequence_length].sum()
            self.truncated += sample.truncated or len(sample) > sequence_length
        drawn = self._drawn()
        tokens = int(np.minimum(self._lengths[drawn], sequence_length).sum(dtype=np.int64))
        trained = int(marks[drawn].sum(dtype=np.int64))
        del drawn, marks  # before as many more stand beside them
        if not trained:
            raise ConfigError(
                f"None of the {tokens} tokens of {len(samples)} examples is trained; the answers are missing, or cut "
                f"off by the sequence length of {sequence_length}."
            )
        self.tokens, self.trained_tokens = tokens, trained
        self.trained_fraction = trained / tokens
        self._order = self._shuffled()

    def _drawn(self) -> np.ndarray:
        """The samples of this epoch, in no order."""
        return compact(np.arange(len(self.samples)))

    def _shuffled(self) -> Sequence[list[int]]:
        """This epoch's rows: which samples share one changes too."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch]))
        drawn = self._drawn()
        order = drawn[compact(rng.permutation(len(drawn)))]
        del drawn
        rows = _rows(self._lengths[order], self.sequence_length, self.packing)
        return rows.renamed(order, rng.permutation(len(rows)) if self.packing else self._by_length(order, rng))

    def _by_length(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Places of `order`, batches of like lengths in any order: within 50 batches each, as transformers groups them.

        The first places fill up the last batch of the epoch before.
        """
        first = -self._rows_before() % self.batch_size
        size, places = self.batch_size, compact(np.arange(len(order)))
        full = first + max(0, len(order) - first) // size * size  # where the last whole batch ends
        for start in range(first, full, NEARBY * size):
            part = places[start : min(start + NEARBY * size, full)]
            places[start : start + len(part)] = part[np.argsort(self._lengths[order[part]], kind="stable")]
        batches = places[first:full].reshape(-1, size) if first < full else places[:0].reshape(0, size)
        return np.concatenate([places[:first], rng.permutation(batches).reshape(-1), places[max(first, full) :]])

    def _rows_before(self) -> int:
        """Samples that the epochs before this one drew."""
        return self.epoch * len(self.samples)

    @property
    def rows(self) -> int:
        """Rows of this epoch."""
        return len(self._order)

    @property
    def batches_per_epoch(self) -> int:
        """Batches of this epoch; the last one is filled up from the next epoch."""
        return -(-len(self._order) // self.batch_size)

    def __len__(self) -> int:
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        """The batches of an epoch, from where the loader stands; the next iteration goes on with the next epoch."""
        return (self.next_batch() for _ in range(self.batches_per_epoch))

    def next_batch(self) -> Batch:
        """The next batch; epochs follow each other without a gap."""
        return self._collated(self._next_rows())

    def next_batches(self, count: int, rank: int = 0, size: int = 1) -> list[Batch]:
        """Those of the next `count` batches that are for `rank` of `size` ranks: dealt out in turn.

        Every rank's loader advances by all of them.
        """
        dealt = [self._next_rows() for _ in range(count)]
        return [self._collated(rows) for rows in dealt[rank::size]]

    def _collated(self, rows: list[list[int]]) -> Batch:
        return _collated(self.samples, rows, self.sequence_length, self.packing, self.pad_id)

    def _next_rows(self) -> list[list[int]]:
        """The samples of each row of the next batch."""
        rows: list[list[int]] = []
        while len(rows) < self.batch_size:
            if self.position == len(self._order):
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._shuffled()
            rows.append(self._order[self.position])
            self.position += 1
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands, as plain integers."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position, "samples": len(self.samples)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; ConfigError where the data or the seed is another."""
        if state.get("samples") != len(self.samples) or state.get("seed") != self.seed:
            raise ConfigError(
                f"The checkpoint read {state.get('samples')} examples with seed {state.get('seed')}, this run has "
                f"{len(self.samples)} with seed {self.seed}; resume with the same data and seed."
            )
        before = self.epoch
        self.epoch = state["epoch"]
        order = self._shuffled()
        if not 0 <= state["position"] <= len(order):
            self.epoch = before
            raise ConfigError(
                f"The checkpoint stands at row {state['position']} of {len(order)}; the data has changed."
            )
        self.position, self._order = state["position"], order


class EvaluationBatches(Sequence[Batch]):
    """Batches of samples in a fixed order, made when they are asked for."""

    def __init__(
        self, samples: Sequence[Sample], rows: Rows, batch_size: int, sequence_length: int, packing: bool, pad_id: int
    ) -> None:
        self._samples, self._rows, self._size = samples, rows, batch_size
        self._row = (sequence_length, packing, pad_id)

    def __len__(self) -> int:
        return -(-len(self._rows) // self._size)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        start = range(len(self))[index] * self._size
        return _collated(self._samples, self._rows[start : start + self._size], *self._row)


def evaluation_batches(
    samples: Sequence[Sample], batch_size: int, sequence_length: int, packing: bool = True, pad_id: int = 0
) -> EvaluationBatches:
    """Every sample once, in a fixed order; the last batch may have fewer rows."""
    rows = _rows(_lengths(samples), sequence_length, packing)
    return EvaluationBatches(samples, rows, batch_size, sequence_length, packing, pad_id)
