"""Samples to rows: several in a row, each with its own positions, none seeing another."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from entrenar.data.masking import Sample
from entrenar.data.places import compact, ints

IGNORE = -100  # target of a token that is not trained


@dataclass(frozen=True)
class Batch:
    """Rows for the model.

    tokens, targets and positions (batch, seq) int64; targets are shifted already (targets[t] is tokens[t + 1]) and
    IGNORE where nothing is trained: prompts, padding, the last token of a sample. cu_seqlens (segments + 1,) int64
    bounds samples and padding in the flattened tokens. `weights` (batch, seq) float32 are what the targets count in the
    loss, None where each counts 1.
    """

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    cu_seqlens: np.ndarray
    trained_tokens: int
    weights: np.ndarray | None = None

    @property
    def trained_weight(self) -> float:
        """The sum of the targets' weights: what a mean over them divides by."""
        return float(self.trained_tokens if self.weights is None else self.weights.sum(dtype=np.float64))


class Rows(Sequence[list[int]]):
    """Lists of sample indices in flat arrays: row i is `samples[bounds[j] : bounds[j + 1]]` with j = `order[i]`."""

    def __init__(self, samples: np.ndarray, bounds: np.ndarray, order: np.ndarray | None = None) -> None:
        self._samples, self._bounds = compact(samples), compact(bounds)
        self._order = compact(np.arange(len(bounds) - 1) if order is None else order)

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        row = self._order[index]
        found: list[int] = self._samples[self._bounds[row] : self._bounds[row + 1]].tolist()
        return found

    def renamed(self, names: np.ndarray, order: np.ndarray) -> Rows:
        """These rows in another order, with `names` of the indices in their place."""
        return Rows(compact(names)[self._samples], self._bounds, order)


def pack(lengths: Sequence[int] | np.ndarray, sequence_length: int) -> Rows:
    """Bins of sample indices whose lengths (capped) sum to at most `sequence_length`: best fit, longest first."""
    given = lengths if isinstance(lengths, np.ndarray) else np.array(lengths, np.int64)
    sizes = np.minimum(given, sequence_length)
    longest_first = compact(np.argsort(-sizes, kind="stable"))
    rooms: dict[int, array[int]] = {}  # free room -> bins that have it
    free = 0  # bit r: a bin has r tokens of free room
    chosen, count = array("q"), 0
    for size in ints(sizes[longest_first]):
        fitting = free >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            number = rooms[room].pop()
            if not rooms[room]:
                free ^= 1 << room
        else:
            room, number, count = sequence_length, count, count + 1
        chosen.append(number)
        if room - size < sequence_length:
            rooms.setdefault(room - size, array("q")).append(number)
            free |= 1 << (room - size)
    bins = np.frombuffer(chosen, np.int64) if chosen else np.zeros(0, np.int64)
    order = compact(np.argsort(bins, kind="stable"))  # of one bin in the order in which they came into it
    bounds = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=count))])
    return Rows(longest_first[order], bounds)


def collate(rows: Sequence[Sequence[Sample]], sequence_length: int, pad_id: int) -> Batch:
    """One batch of these rows, each of samples that fit into `sequence_length` (longer ones are cut) and padding."""
    shape = (len(rows), sequence_length)
    tokens, targets = np.full(shape, pad_id, np.int64), np.full(shape, IGNORE, np.int64)
    positions = np.zeros(shape, np.int64)
    weights = np.zeros(shape, np.float32) if any(s.weights is not None for row in rows for s in row) else None
    bounds = [0]
    for r, row in enumerate(rows):
        start = 0
        for sample in row:
            size = min(len(sample), sequence_length - start)
            stop = start + size
            tokens[r, start:stop] = sample.tokens[:size]
            wanted = np.where(sample.trained[1:size], sample.tokens[1:size], IGNORE)
            targets[r, start : stop - 1] = wanted
            if weights is not None:
                each = 1 if sample.weights is None else sample.weights[1:size]
                weights[r, start : stop - 1] = np.where(sample.trained[1:size], each, 0)
            positions[r, start:stop] = np.arange(size)
            bounds.append(r * sequence_length + stop)
            start = stop
        if start < sequence_length:
            positions[r, start:] = np.arange(sequence_length - start)
            bounds.append((r + 1) * sequence_length)
    return Batch(tokens, targets, positions, np.array(bounds, np.int64), int((targets != IGNORE).sum()), weights)
