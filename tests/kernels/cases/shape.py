"""Cases of reshape, transpose, slice and concatenate: all exact."""

from __future__ import annotations

from typing import Any

import numpy as np

from entrenar import autograd

from .base import Case, normal


def reshape_case(shape: tuple[int, ...], new: tuple[int, ...]) -> Case:
    return Case(
        "reshape",
        f"{shape} to {new}",
        normal(shape),
        lambda x: autograd.reshape(x, new),
        lambda x: x.reshape(new),
        0.0,
        gradient=np.prod(shape) < 1000,
    )


def transpose_case(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> Case:
    return Case(
        "transpose",
        f"{shape} axes {axes}",
        normal(shape),
        lambda x: autograd.transpose(x, axes),
        lambda x: x.transpose(axes),
        0.0,
        gradient=np.prod(shape) < 1000,
    )


def slice_case(shape: tuple[int, ...], index: Any) -> Case:
    return Case(
        "slice",
        f"{shape} {index}",
        normal(shape),
        lambda x: x[index],
        lambda x: np.asarray(x[index]),
        0.0,
        gradient=np.prod(shape) < 1000,
    )


def concatenate_case(axis: int, *shapes: tuple[int, ...]) -> Case:
    return Case(
        "concatenate",
        f"{shapes} axis {axis}",
        normal(*shapes),
        lambda *xs: autograd.concatenate(xs, axis),
        lambda *xs: np.concatenate(xs, axis),
        0.0,
        gradient=np.prod(shapes[0]) < 1000,
    )


CASES = [
    *(
        reshape_case(*args)
        for args in [
            ((), (1, 1)),
            ((6,), (2, 3)),
            ((4, 6), (3, -1)),
            ((2, 3, 4), (24,)),
            ((0, 3), (3, 0)),
            ((300, 1000), (1000, 300)),
        ]
    ),
    *(
        transpose_case(*args)
        for args in [
            ((), None),
            ((5,), None),
            ((1, 9), None),
            ((7, 11), None),
            ((16, 16), None),
            ((19, 35), (1, 0)),
            ((2, 3, 5), None),
            ((3, 9, 10), (0, 2, 1)),
            ((3, 9, 10), (1, 0, 2)),
            ((3, 9, 10), (-1, 0, 1)),
            ((2, 3, 4, 5), (0, 2, 1, 3)),
            ((2, 3, 4, 5), (3, 1, 2, 0)),
            ((0, 4), None),
            ((517, 613), None),
            ((7, 130, 301), (0, 2, 1)),
            ((6, 130, 9, 48), (0, 2, 1, 3)),
            ((61, 70, 71), (2, 1, 0)),
        ]
    ),
    *(
        slice_case(*args)
        for args in [
            ((7,), 3),
            ((7,), slice(None, None, -1)),
            ((7, 9), 2),
            ((7, 9), (slice(None), -1)),
            ((7, 9), (slice(1, 6, 2), slice(8, 0, -3))),
            ((7, 9), (Ellipsis, slice(2, 5))),
            ((7, 9), (None, 4, None, slice(0, 9, 4))),
            ((3, 4, 5), (Ellipsis, 1, slice(None))),
            ((3, 4, 5), Ellipsis),
            ((3, 4), (slice(2, 2),)),
            ((3, 4), (1, 2)),
            ((700, 301), (slice(3, 650), slice(1, 300))),
            ((700, 301), (slice(None, None, -1), slice(0, 300, 2))),
        ]
    ),
    *(
        concatenate_case(*args)
        for args in [
            (0, (3,), (4,), (1,)),
            (0, (2, 5), (3, 5)),
            (-1, (2, 5), (2, 1), (2, 0), (2, 9)),
            (1, (2, 3, 4), (2, 2, 4)),
            (1, (301, 512), (301, 300)),
        ]
    ),
    Case(
        "slice",
        "two overlapping slices add up",
        normal((6, 5)),
        lambda x: x[1:5] * x[2:6],
        lambda x: x[1:5] * x[2:6],
        6e-8,
    ),
    Case(
        "concatenate",
        "the same tensor twice",
        normal((3, 4)),
        lambda x: autograd.concatenate([x, x * 2.0, x], 1),
        lambda x: np.concatenate([x, x * 2, x], 1),
        0.0,
    ),
]
