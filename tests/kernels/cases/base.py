"""What a kernel case is: one call of one op, its float64 NumPy reference, its inputs and its tolerance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """One op on one set of shapes; value, gradient, determinism tests and benchmarks all read it.

    `inputs(rng)` gives the float32 arrays that become tensors with a gradient; anything else (indices, options) is
    closed over by `run` and `reference`. The reference receives float64 copies of the same arrays.
    """

    op: str  # the public name in entrenar.autograd
    label: str  # shapes and options, unique within the op
    inputs: Callable[[np.random.Generator], list[np.ndarray]]
    run: Callable[..., Any]  # (*tensors) -> Tensor
    reference: Callable[..., np.ndarray]  # (*float64 arrays) -> float64 array
    tolerance: float = 1e-6  # norm-wise relative error of the value against float64
    gradient: bool = True  # small enough for finite differences (at most a few hundred outputs)
    differentiable: tuple[int, ...] | None = None  # positions of the inputs with a gradient; None is all

    @property
    def id(self) -> str:
        return f"{self.op}[{self.label}]"


def normal(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], list[np.ndarray]]:
    """Standard normal float32 inputs of these shapes."""
    return lambda rng: [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def away_from(points: tuple[float, ...], *shapes: tuple[int, ...]) -> Callable[[np.random.Generator], list[np.ndarray]]:
    """Standard normal inputs kept at least 0.1 from kinks and poles at `points` (finite differences need it)."""

    def make(rng: np.random.Generator) -> list[np.ndarray]:
        arrays = []
        for shape in shapes:
            x = rng.standard_normal(shape)
            for point in points:
                close = np.abs(x - point) < 0.1
                x = np.where(close, point + np.where(x >= point, 0.1, -0.1) * (1 + np.abs(x - point)), x)
            arrays.append(x.astype(np.float32))
        return arrays

    return make


def positive(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], list[np.ndarray]]:
    """Inputs in [0.2, 3): for log, sqrt, pow, divisors."""
    return lambda rng: [rng.uniform(0.2, 3.0, shape).astype(np.float32) for shape in shapes]
