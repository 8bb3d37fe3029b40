"""The health of what is trained: adapters that stay at zero, and how large updates are beside the weights, by layer."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from entrenar.autograd import Tensor

DEAD_AFTER = 20  # steps; from the second update on, B of every adapter that has a gradient is not zero
LOOKED_AT = 1 << 14  # weights of a tensor, spread over it
LAYER = re.compile(r"(.*?layers\.\d+)\.")
ZERO_AT_FIRST = re.compile(r"\.lora_(embedding_)?B\b")

Parameters = Sequence[tuple[str, Tensor]]


def dead_adapters(parameters: Parameters) -> tuple[list[str], int]:
    """The names of the B matrices that are all zero, and how many there are altogether."""
    having = [(name, tensor) for name, tensor in parameters if ZERO_AT_FIRST.search(name)]
    return [name for name, tensor in having if not tensor.numpy().any()], len(having)


class UpdateRatios:
    """Root mean square of an update over that of the weights, by layer, from at most LOOKED_AT weights of a tensor.

    B of an adapter is left out: it begins at zero.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parts = [
            (_layer(name), tensor.numpy().reshape(-1)[:: max(1, tensor.numpy().size // LOOKED_AT)])
            for name, tensor in parameters
            if not ZERO_AT_FIRST.search(name)
        ]
        self._before = [part.copy() for _, part in self._parts]

    def after_update(self) -> dict[str, float]:
        """The ratio of each layer, between now and when this was made."""
        sums: dict[str, list[float]] = {}
        for (layer, part), before in zip(self._parts, self._before, strict=True):
            moved, size = sums.setdefault(layer, [0.0, 0.0])
            changed = part.astype(np.float64) - before
            sums[layer] = [moved + float(changed @ changed), size + float(np.square(before, dtype=np.float64).sum())]
        return {layer: float(np.sqrt(moved / size)) for layer, (moved, size) in sums.items() if size > 0}


def _layer(name: str) -> str:
    found = LAYER.match(name)
    return found[1] if found else name
