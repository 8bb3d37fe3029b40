"""Where the records of a file stand: 8 bytes a record, and no object of Python for any of them."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

BLOCK = 4096  # numbers of an array that are Python's integers at once


class Places:
    """Where each record begins, in order, and which number (of a line, of a record) it has.

    A record ends at the latest where the next begins, the last one at `end`. Numbers are kept where they jump, as
    behind a blank line: 16 bytes for each jump.
    """

    def __init__(self) -> None:
        self._starts, self.end = array("q"), 0
        self._jumps, self._ahead = array("q", [0]), array("q", [1])  # from this record on, its number less its index

    def append(self, start: int, end: int, number: int) -> None:
        """One more record, behind those before it."""
        ahead = number - len(self._starts)
        if ahead != self._ahead[-1]:
            self._jumps.append(len(self._starts))
            self._ahead.append(ahead)
        self._starts.append(start)
        self.end = end

    def __len__(self) -> int:
        return len(self._starts)

    def span(self, index: int) -> tuple[int, int]:
        """The bytes from this record's beginning to that of the next."""
        following = index + 1
        return self._starts[index], self._starts[following] if following < len(self._starts) else self.end

    def number(self, index: int) -> int:
        """The number of this record."""
        return index + self._ahead[bisect_right(self._jumps, index) - 1]


def compact(indices: np.ndarray) -> np.ndarray:
    """Indices in 4 bytes each where these suffice."""
    return indices.astype(np.int32 if indices.max(initial=0) < 2**31 else np.int64, copy=False)


def ints(numbers: np.ndarray) -> Iterator[int]:
    """The integers of an array in turn: a list of all of them would be 40 bytes each."""
    for start in range(0, len(numbers), BLOCK):
        yield from numbers[start : start + BLOCK].tolist()
