"""Which examples are held out: a side follows from an example's text, so equal texts are never on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np

from entrenar.data.formats import Example, Examples
from entrenar.data.places import BLOCK, compact, ints


def digests(examples: Collection[Example]) -> np.ndarray:
    """The first 64 bits of the SHA-256 of each example's text, (n,) uint64."""
    return np.fromiter((digest(example.text) for example in examples), np.uint64, len(examples))


def digest(text: str) -> int:
    """The first 64 bits of the SHA-256 of a text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def split_indices(hashes: np.ndarray, fraction: float, least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(to train on, held out) indices, ascending, of examples with these `digests`; a fraction of 0 holds out nothing.

    Held out is what lies below `fraction` of the hashes' range. Where that leaves nothing to train on or fewer than
    `least` texts held out, as chance does with few examples, the texts of the smallest hashes are held out until they
    are max(1, fraction x n) examples and `least` texts, and the text of the largest is trained on. One side stays empty
    only where all texts are equal.
    """
    limit = int(fraction * 2**64)
    held_out = hashes < np.uint64(limit) if limit < 2**64 else np.ones(len(hashes), bool)
    few = len(np.unique(hashes[held_out])) < least
    if 0 < fraction < 1 and len(hashes) and (held_out.all() or few):
        texts, counts = np.unique(hashes, return_counts=True)  # ascending
        wanted = max(1, int(fraction * len(hashes)))
        number = max(least, int(np.searchsorted(np.cumsum(counts), wanted)) + 1)
        held_out = hashes <= texts[min(number, len(texts) - 1) - 1] if len(texts) > 1 else np.zeros(len(hashes), bool)
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def split_files(
    hashes: np.ndarray, bounds: np.ndarray, fraction: float, least: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """As `split_indices` for each of several files, which begin at `bounds`; what one holds out no other trains on."""
    kept = np.ones(len(hashes), bool)
    for start, stop in pairwise(bounds):
        kept[start + split_indices(hashes[start:stop], fraction, least)[1]] = False
    kept &= ~among(hashes, hashes[~kept])
    return compact(np.flatnonzero(kept)), compact(np.flatnonzero(~kept))


def among(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which of `hashes` (n,) stand in `others` too, (n,) bool: as `np.isin`, in a byte a hash instead of 40."""
    found, ordered = np.zeros(len(hashes), bool), np.sort(others)
    for start in range(0, len(hashes) if len(ordered) else 0, BLOCK):
        part = hashes[start : start + BLOCK]
        places = np.minimum(np.searchsorted(ordered, part), len(ordered) - 1)
        found[start : start + BLOCK] = ordered[places] == part
    return found


def split_held_out(examples: Sequence[Example], fraction: float = 0.02) -> tuple[list[Example], list[Example]]:
    """(to train on, held out) as `split_indices` says."""
    sides = split_indices(digests(examples), fraction)
    return [examples[i] for i in sides[0]], [examples[i] for i in sides[1]]


class Subset(Sequence[Example]):
    """Some of a file's examples, or of a list's, read when they are asked for."""

    def __init__(self, examples: Examples | list[Example], indices: np.ndarray) -> None:
        self._examples, self._indices = examples, compact(indices)

    def chosen(self, indices: np.ndarray) -> Subset:
        """Those of these indices."""
        return Subset(self._examples, self._indices[indices])

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return list(Subset(self._examples, self._indices[index]))
        return self._examples[int(self._indices[index])]

    def __iter__(self) -> Iterator[Example]:
        if isinstance(self._examples, Examples):
            return self._examples.read(ints(self._indices))
        return (self._examples[i] for i in ints(self._indices))
