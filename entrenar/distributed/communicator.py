"""What the ranks of a run exchange: sums, a value of rank 0, a common point."""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np

T = TypeVar("T")


class Communicator(Protocol):
    """The ranks of one run. Every rank makes the same calls in the same order; each call returns in all or in none."""

    @property
    def rank(self) -> int:
        """Which of the ranks this process is, from 0; rank 0 writes the files."""

    @property
    def size(self) -> int:
        """How many ranks the run has."""

    def all_reduce(self, array: np.ndarray) -> None:
        """Replace `array`, of one shape and dtype in all ranks, by its sum over the ranks: the same bits in each."""

    def broadcast(self, value: T) -> T:
        """The `value` of rank 0."""

    def barrier(self) -> None:
        """Return when every rank is here."""


class LocalCommunicator:
    """The only rank of a run: sums are what they are, bit for bit."""

    rank = 0
    size = 1

    def all_reduce(self, array: np.ndarray) -> None:
        """Leave `array`, the sum over one rank, as it is."""

    def broadcast(self, value: T) -> T:
        """`value` itself."""
        return value

    def barrier(self) -> None:
        """Return at once."""
