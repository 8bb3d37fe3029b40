"""Cases of softmax and log_softmax along every axis, with rows of odd lengths."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from entrenar import autograd

from .base import Case, normal

Shape = tuple[int, ...]


def reference_log_softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    shifted = x - x.max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


def reference_softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.exp(reference_log_softmax(x, axis))


REFERENCES: dict[str, Callable[..., np.ndarray]] = {"softmax": reference_softmax, "log_softmax": reference_log_softmax}
TOLERANCES = {"softmax": 2.5e-7, "log_softmax": 1e-7}
SMALL: list[tuple[Shape, int]] = [
    ((1,), -1),
    ((7,), 0),
    ((5, 1), -1),
    ((1, 9), -1),
    ((4, 16), 1),
    ((3, 35), -1),
    ((7, 5), 0),
    ((3, 4, 5), 1),
    ((3, 4, 5), -3),
    ((0, 5), -1),
    ((5, 0), 0),
]
LARGE: list[tuple[Shape, int]] = [
    ((300, 1001), -1),
    ((3, 20_003), -1),
    ((513, 65), 0),
    ((9, 70, 70), 1),
]


def case(op: str, shape: Shape, axis: int, gradient: bool) -> Case:
    return Case(
        op,
        f"{shape} axis {axis}",
        normal(shape),
        lambda x: getattr(autograd, op)(x, axis),
        lambda x: REFERENCES[op](x, axis) if x.size else x,
        TOLERANCES[op] * (2 if shape[axis] > 10_000 else 1),  # a running sum over the row
        gradient,
    )


CASES = [case(op, *arguments, gradient=True) for op in REFERENCES for arguments in SMALL]
CASES += [case(op, *arguments, gradient=False) for op in REFERENCES for arguments in LARGE]
