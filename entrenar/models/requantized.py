"""What it costs to quantize matrices that a file has quantized already: measured, so that it can be said."""

from __future__ import annotations

import math

import numpy as np

from entrenar.autograd.quantized import QuantizedTensor

MEASURED_ROWS = 16  # of each matrix; of q and k a head


class Requantized:
    """Sums of squares over the first rows of some matrices: of their values, and of what is changed in them."""

    def __init__(self) -> None:
        self.matrices, self.error, self.size = 0, 0.0, 0.0

    def add(self, first: np.ndarray, quantized: QuantizedTensor) -> None:
        """Count a matrix: its first rows as the file has them, and all of it in its new weight type."""
        change = quantized.dequantize_rows(0, len(first)) - first
        self.matrices += 1
        self.error += float(np.vdot(change, change))
        self.size += float(np.vdot(first, first))

    def sentence(self, stored: str, to: str) -> str:
        """For the person who runs it: how many matrices, the relative rms of the change, what avoids it."""
        change = 100 * math.sqrt(self.error / self.size) if self.size else 0.0
        return (
            f"{self.matrices} matrices of type {stored} are requantized to {to.upper()}, which changes their values "
            f"by {change:.1f} % (relative rms of their first rows) and costs accuracy; --no-quantize-4bit "
            "(quantize=None) trains over the file's own values, in more memory."
        )
