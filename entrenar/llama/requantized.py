"""What it costs to give matrices whose codes a file has other codes: measured, so that it can be said."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from entrenar.autograd.quantized import QuantizedTensor

MEASURED_ROWS = 64  # of each matrix


class Requantized:
    """Sums of squares over the first rows of some matrices: of their values, and of what other codes change in them."""

    def __init__(self) -> None:
        self.matrices, self.error, self.size = 0, 0.0, 0.0
        self._first: np.ndarray | None = None

    def noting(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The chunks of a matrix as they are; its first rows are kept for `measured`."""
        for chunk in chunks:
            if self._first is None:
                self._first = chunk[:MEASURED_ROWS].copy()
            yield chunk

    def measured(self, coded: QuantizedTensor) -> Requantized:
        """This with the matrix whose chunks were noted, now that it is in other codes."""
        assert self._first is not None
        change = coded.dequantize_rows(0, len(self._first)) - self._first
        self.matrices += 1
        self.error += float(np.square(change, dtype=np.float64).sum())
        self.size += float(np.square(self._first, dtype=np.float64).sum())
        return self

    def add(self, other: Requantized) -> None:
        """Count the matrices of `other` too."""
        self.matrices += other.matrices
        self.error += other.error
        self.size += other.size

    def sentence(self, stored: str, kind: str) -> str:
        """For the person who runs it: how many matrices, the relative rms of the change, what avoids it."""
        change = 100 * math.sqrt(self.error / self.size) if self.size else 0.0
        return (
            f"{self.matrices} matrices of type {stored} are requantized to {kind.upper()}, which changes their values "
            f"by {change:.1f} % (relative rms of their first rows) and costs accuracy; --no-quantize-4bit "
            "(quantize=None) trains over the file's own values, in more memory."
        )
