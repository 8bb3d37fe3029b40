"""Cases of sum, mean and max: every kind of axis, odd lengths, and lengths that need blocks."""

from __future__ import annotations

import numpy as np

from entrenar import autograd

from .base import Case, normal, positive

# shape, axis, keepdims
SMALL: list[tuple[tuple[int, ...], int | tuple[int, ...] | None, bool]] = [
    ((), None, False),
    ((1,), 0, False),
    ((37,), None, False),
    ((5, 7), None, False),
    ((5, 7), None, True),
    ((5, 7), 0, False),
    ((5, 7), 1, True),
    ((5, 48), -1, False),
    ((3, 4, 9), 1, False),
    ((3, 4, 9), (0, 2), False),
    ((3, 4, 9), (1, 2), True),
    ((3, 4, 9), (0, 1), False),
    ((2, 3, 2, 5), (0, 2), False),
    ((2, 3, 2, 5), (1, 3), True),
    ((2, 3, 2, 5), (), False),
    ((4, 1, 6), 1, False),
]
LARGE: list[tuple[tuple[int, ...], int | tuple[int, ...] | None, bool]] = [
    ((1_000_003,), None, False),
    ((3, 200_001), 1, False),
    ((513, 1001), 1, False),
    ((513, 1001), 0, False),
    ((50_001, 7), 0, False),
    ((37, 41, 301), 1, False),
    ((37, 41, 301), (0, 2), False),
]
REFERENCES = {"sum": np.sum, "mean": np.mean, "max": np.max}
# norm-wise on standard normal data, whose sums cancel; max is exact
TOLERANCES = {"sum": 2e-7, "mean": 2e-7, "max": 0.0}


def distinct(shape: tuple[int, ...]):
    """A shuffled range, 0.01 or more apart: a finite difference of a maximum meets no ties."""
    return lambda rng: [(rng.permutation(int(np.prod(shape))) * 0.01).reshape(shape).astype(np.float32)]


def reduce_case(op: str, shape: tuple[int, ...], axis, keepdims: bool, gradient: bool) -> Case:
    reference = REFERENCES[op]
    return Case(
        op,
        f"{'x'.join(map(str, shape))} axis {axis}{' keepdims' if keepdims else ''}",
        distinct(shape) if op == "max" else normal(shape),
        lambda x: getattr(autograd, op)(x, axis, keepdims),
        lambda x: np.asarray(reference(x, axis=axis, keepdims=keepdims)),
        tolerance=TOLERANCES[op],
        gradient=gradient,
    )


CASES = [reduce_case(op, *args, gradient=True) for op in REFERENCES for args in SMALL]
CASES += [reduce_case(op, *args, gradient=False) for op in REFERENCES for args in LARGE]
CASES += [
    Case("sum", "million positive", positive((1_000_000,)), autograd.sum, lambda x: np.asarray(x.sum()), 6e-8, False),
    Case(
        "mean", "million positive", positive((1_000_000,)), autograd.mean, lambda x: np.asarray(x.mean()), 6e-8, False
    ),
    Case("sum", "million positive rows", positive((100_000, 10)), lambda x: x.sum(0), lambda x: x.sum(0), 1e-7, False),
    Case("sum", "zeros", lambda rng: [np.zeros((4, 9), np.float32)], lambda x: x.sum(1), lambda x: x.sum(1), 0.0),
    Case("sum", "nothing", lambda rng: [np.zeros((4, 0), np.float32)], lambda x: x.sum(1), lambda x: x.sum(1), 0.0),
]
