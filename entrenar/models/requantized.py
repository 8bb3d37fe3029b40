"""Matrices that a file has quantized and that do not stay so: which, and what it costs, measured to be said."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np

from entrenar.autograd.quantized import QuantizedTensor

MEASURED_ROWS = 16  # of each matrix; of q and k a head


def gathered(names: Iterable[str]) -> str:
    """Names of tensors in a sentence, those of all layers as one: "blk.*.ffn_up.weight and output.weight"."""
    found = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name) for name in names))
    return " and ".join(filter(None, (", ".join(found[:-1]), found[-1])))


def dequantized_sentence(names: list[str], stored: str, to: str) -> str:
    """For the person who runs it: matrices of a type that kernels do not read and that are not quantized again."""
    some = "the tensor" if len(names) == 1 else f"{len(names)} tensors"
    return (
        f"{some} of type {stored} ({gathered(names)}), which no kernel reads, "
        f"{'is' if len(names) == 1 else 'are'} dequantized to {to}{'' if to == 'float32' else ' and rounded'}, in more "
        "memory than in the file."
    )


class Requantized:
    """Sums of squares over the first rows of some matrices: of their values, and of what is changed in them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.error, self.size = 0.0, 0.0

    def add(self, name: str, first: np.ndarray, quantized: QuantizedTensor) -> None:
        """Count a matrix: its name and first rows as the file has them, and all of it in its new weight type."""
        change = quantized.dequantize_rows(0, len(first)) - first
        self.names.append(name)
        self.error += float(np.vdot(change, change))
        self.size += float(np.vdot(first, first))

    def sentence(self, stored: str, to: str) -> str:
        """For the person who runs it: how many matrices, the relative rms of the change, what avoids it."""
        change = 100 * math.sqrt(self.error / self.size) if self.size else 0.0
        return (
            f"{len(self.names)} matrices of type {stored} ({gathered(self.names)}) are requantized to {to.upper()}, "
            f"which changes their values by {change:.1f} % (relative rms of their first rows) and costs accuracy; "
            "--no-quantize-4bit (quantize=None) trains over the file's own values, in more memory."
        )
