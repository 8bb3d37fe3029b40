"""Initial weights, drawn by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from entrenar.autograd import Tensor


def random_weights(seed: int, std: float, norm: float = 1.0) -> Callable[[str, tuple[int, ...]], Tensor]:
    """Initial weights by name: normal with `std` for matrices, `norm` for norms, zeros for biases.

    Each name has its own random stream.
    """

    def make(name: str, shape: tuple[int, ...]) -> Tensor:
        if len(shape) == 1:
            values = np.full(shape, 0.0 if name.endswith(".bias") else norm, np.float32)
            return Tensor.from_numpy(values, requires_grad=True)
        digest = hashlib.blake2b(name.encode(), digest_size=8).digest()  # long names that differ only in the middle
        stream = np.random.Generator(np.random.Philox(key=[seed, int.from_bytes(digest, "little")]))
        values = stream.standard_normal(shape, np.float32)
        values *= np.float32(std)
        return Tensor.from_numpy(values, requires_grad=True)

    return make
