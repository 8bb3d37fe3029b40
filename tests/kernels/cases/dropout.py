"""Cases of dropout. The reference draws its mask with a Philox4x32-10 of its own, in NumPy."""

from __future__ import annotations

import numpy as np

from entrenar import autograd
from entrenar.autograd import random

from .base import Case, normal

SEED, STEP = 0x1234_5678_9ABC_DEF0, 3


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox4x32-10 of counters [n, 4]: the words [n, 4], from the definition in Salmon et al. (SC 2011)."""
    c = [counter[:, i].astype(np.uint64) for i in range(4)]
    k0, k1 = key
    mask = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        a, b = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (b >> np.uint64(32)) ^ c[1] ^ np.uint64(k0),
            b & mask,
            (a >> np.uint64(32)) ^ c[3] ^ np.uint64(k1),
            a & mask,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, 1).astype(np.uint32)


def mask(n: int, p: float, seed: int, step: int, operation: int) -> np.ndarray:
    """The mask as documented: element e of each group of 64 takes word e // 16 of the group's counter e % 16."""
    groups = -(-n // 64)
    counter = np.zeros((groups * 16, 4), np.uint64)
    counter[:, 0] = np.arange(groups * 16)
    counter[:, 2], counter[:, 3] = operation, step
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    words = words.reshape(groups, 16, 4).transpose(0, 2, 1).reshape(-1)[:n]
    return words.astype(np.float64) >= np.float64(np.float32(p)) * 2**32 // 1


def run(p: float):
    def dropout(x):
        random.manual_seed(SEED)
        random.set_step(STEP)
        autograd.dropout(x, 0.1)  # so that ours is operation 1
        return autograd.dropout(x, p)

    return dropout


def reference(p: float):
    def dropout(x: np.ndarray) -> np.ndarray:
        return x * mask(x.size, p, SEED, STEP, 1).reshape(x.shape) / (1 - np.float64(np.float32(p)))

    return dropout


def case(shape: tuple[int, ...], p: float) -> Case:
    small = int(np.prod(shape)) < 1000
    return Case("dropout", f"{shape} p {p}", normal(shape), run(p), reference(p), tolerance=1e-7, gradient=small)


CASES = [case((), 0.5), case((1,), 0.1), case((7, 9), 0.5), case((130,), 0.25), case((3, 5, 13), 0.9)]
CASES += [case((301, 1001), 0.05), case((301, 1001), 0.5), case((0, 4), 0.5)]
CASES += [
    Case("dropout", "p 1 zeroes everything", normal((5, 7)), lambda x: autograd.dropout(x, 1.0), np.zeros_like, 0.0),
]
