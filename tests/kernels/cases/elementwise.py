"""Cases of add, sub, mul, div and neg: equal shapes, scalars, row and column vectors, general broadcasts."""

from __future__ import annotations

import operator

import numpy as np

from entrenar import autograd

from .base import Case, normal

# label -> shapes of the two operands
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "same 1": ((1,), (1,)),
    "same 5x7": ((5, 7), (5, 7)),
    "same 33": ((33,), (33,)),
    "scalars": ((), ()),
    "scalar right": ((3, 13), ()),
    "scalar left": ((1, 1), (3, 13)),
    "row": ((4, 19), (19,)),
    "column": ((4, 19), (4, 1)),
    "outer product": ((9, 1), (1, 17)),
    "middle axis": ((3, 5, 6), (3, 1, 6)),
    "both repeat": ((3, 1, 4, 1), (2, 4, 5)),
    "empty": ((0, 3), (3,)),
}
LARGE = {
    "large same": ((301, 1023), (301, 1023)),
    "large row": ((301, 1023), (1023,)),
    "large column": ((301, 1023), (301, 1)),
    "large middle": ((40, 33, 130), (40, 1, 130)),
    "large scalar": ((301, 1023), ()),
}
OPS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv}


def divisors(*shapes: tuple[int, ...]):
    """Standard normal dividends; divisors of both signs with a magnitude of 0.5 to 2."""

    def make(rng: np.random.Generator) -> list[np.ndarray]:
        b = rng.uniform(0.5, 2.0, shapes[1]) * rng.choice([-1.0, 1.0], shapes[1])
        return [rng.standard_normal(shapes[0]).astype(np.float32), np.asarray(b, dtype=np.float32)]

    return make


def binary_case(op: str, label: str, shapes: tuple[tuple[int, ...], ...], gradient: bool) -> Case:
    make = divisors if op == "div" else normal
    # one rounding an element: half an ulp at most
    return Case(op, label, make(*shapes), getattr(autograd, op), OPS[op], tolerance=6e-8, gradient=gradient)


CASES = [binary_case(op, label, shapes, True) for op in OPS for label, shapes in SHAPES.items()]
CASES += [binary_case(op, label, shapes, False) for op in OPS for label, shapes in LARGE.items()]
CASES += [
    Case("mul", "the same tensor twice", normal((7, 5)), lambda x: x * x, lambda x: x * x, 6e-8),
    Case("add", "the same tensor twice", normal((7, 5)), lambda x: x + x, lambda x: x + x, 0.0),
    Case("mul", "python number", normal((7, 5)), lambda x: 3 * x, lambda x: 3 * x, 6e-8),
    Case("sub", "number minus tensor", normal((7, 5)), lambda x: 1.5 - x, lambda x: 1.5 - x, 6e-8),
    Case(
        "div", "number by tensor", lambda rng: divisors((1,), (7, 5))(rng)[1:], lambda x: 2 / x, lambda x: 2 / x, 6e-8
    ),
    Case("add", "zeros", lambda rng: [np.zeros((4, 9), np.float32)] * 2, autograd.add, np.add, 0.0),
    Case("neg", "scalar", normal(()), autograd.neg, np.negative, 0.0),
    Case("neg", "5x7", normal((5, 7)), autograd.neg, np.negative, 0.0),
    Case("neg", "large", normal((300, 1001)), autograd.neg, np.negative, 0.0, gradient=False),
]
