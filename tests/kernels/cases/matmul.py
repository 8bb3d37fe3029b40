"""Cases of matmul, linear and lora_linear: edges of every micro-kernel, gemv, stacks, and every weight type.

A micro-panel of A has 6 or 14 rows, one of B 8, 16 or 32 columns; the contraction is cut after 384 steps, and packed
for 8192 at once; rows of A are packed for 1024 at once; up to 8 rows (20 of some types) go to gemv.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from entrenar import autograd
from entrenar.autograd import random

from .base import Case, normal
from .dropout import SEED, STEP, mask
from .weights import FROZEN, frozen_weight, whole_blocks

Shape = tuple[int, ...]


def tolerance(k: int) -> float:
    """Norm-wise, for standard normal factors: rounding errors of a sum of k products grow like its root."""
    return 1.2e-7 + 2e-8 * k**0.5


# ---------------------------------------------------------------- matmul
def matmul_case(a: Shape, b: Shape, gradient: bool = True) -> Case:
    return Case("matmul", f"{a} {b}", normal(a, b), autograd.matmul, np.matmul, tolerance(a[-1]), gradient)


SMALL: list[tuple[Shape, Shape]] = [
    ((1, 1), (1, 1)),
    ((2, 3), (3, 4)),
    ((7, 5), (5, 9)),
    ((1, 20), (20, 3)),
    ((13, 1), (1, 17)),
    ((9,), (9,)),
    ((4,), (4, 5)),
    ((6, 4), (4,)),
    ((4,), (2, 4, 3)),
    ((2, 3, 4), (4,)),
    ((2, 3, 4), (2, 4, 5)),
    ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (3, 4, 2)),
    ((2, 1, 2, 3), (1, 3, 3, 2)),
    ((0, 3), (3, 4)),
    ((3, 4), (4, 0)),
    ((3, 0), (0, 4)),
    ((0, 2, 3), (3, 4)),
    ((2, 0, 3), (2, 3, 4)),
]
LARGE: list[tuple[Shape, Shape]] = [
    ((97, 65), (65, 193)),
    ((6, 384), (384, 16)),
    ((14, 385), (385, 33)),
    ((96, 769), (769, 97)),
    ((1025, 31), (31, 50)),
    ((1030, 400), (400, 35)),
    ((65, 1153), (1153, 64)),
    ((3, 70, 64), (3, 64, 70)),
    ((2, 3, 33, 48), (3, 48, 65)),
]


# ---------------------------------------------------------------- linear
def linear_case(x: Shape, n: int, bias: bool = False, gradient: bool = True) -> Case:
    shapes = [x, (n, x[-1])] + ([(n,)] if bias else [])
    return Case(
        "linear",
        f"{x} to {n}{' with bias' if bias else ''}",
        normal(*shapes),
        autograd.linear,
        lambda x, w, *b: x @ w.T + (b[0] if b else 0.0),
        tolerance(x[-1]),
        gradient,
    )


def frozen_case(weight_type: str, x: Shape, n: int, gradient: bool = True) -> Case:
    return Case(
        "linear",
        f"{weight_type} {x} to {n}",
        normal(x),
        lambda x: autograd.linear(x, frozen_weight(weight_type, n, x.shape[-1])[0]),
        lambda x: x @ frozen_weight(weight_type, n, x.shape[-1])[1].T,
        tolerance(x[-1]),
        gradient,
    )


def same_weight_twice(x: autograd.Tensor, w: autograd.Tensor) -> autograd.Tensor:
    return autograd.linear(autograd.linear(x, w), w)


# ---------------------------------------------------------------- lora_linear
def lora_run(weight_type: str, n: int, scaling: float, dropout: float) -> Callable[..., autograd.Tensor]:
    def lora_linear(x, a, b, *rest):  # rest: the weight where it is float32, and the bias where there is one
        random.manual_seed(SEED)
        random.set_step(STEP)
        weight = rest[0] if weight_type == "float32" else frozen_weight(weight_type, n, x.shape[-1])[0]
        bias = rest[-1] if rest and rest[-1].ndim == 1 else None
        return autograd.lora_linear(x, weight, a, b, scaling, dropout, bias)

    return lora_linear


def lora_reference(weight_type: str, n: int, scaling: float, dropout: float) -> Callable[..., np.ndarray]:
    def lora_linear(x, a, b, *rest):
        weight = rest[0] if weight_type == "float32" else frozen_weight(weight_type, n, x.shape[-1])[1]
        bias = rest[-1] if rest and rest[-1].ndim == 1 else 0.0
        kept = mask(x.size, dropout, SEED, STEP, 0).reshape(x.shape) / (1 - np.float64(np.float32(dropout)))
        return x @ weight.T + bias + np.float64(np.float32(scaling)) * (x * kept @ a.T) @ b.T

    return lora_linear


def lora_case(
    weight_type: str,
    x: Shape,
    n: int,
    rank: int,
    scaling: float = 2.0,
    dropout: float = 0.0,
    gradient: bool = True,
    bias: bool = False,
) -> Case:
    shapes = (
        [x, (rank, x[-1]), (n, rank)] + ([(n, x[-1])] if weight_type == "float32" else []) + ([(n,)] if bias else [])
    )
    return Case(
        "lora_linear",
        f"{weight_type} {x} to {n}, rank {rank}, scaling {scaling}, dropout {dropout}{', with bias' if bias else ''}",
        normal(*shapes),  # B is not zero, as it is at the start of a training, so the gradient of A is not zero either
        lora_run(weight_type, n, scaling, dropout),
        lora_reference(weight_type, n, scaling, dropout),
        tolerance(x[-1]),
        gradient,
    )


# ---------------------------------------------------------------- grouped_linear
def grouped_case(x: Shape, sizes: tuple[int, ...], bias: bool) -> Case:
    count = len(sizes)

    def grouped(x: autograd.Tensor, *terms: autograd.Tensor) -> autograd.Tensor:
        return autograd.concatenate(autograd.grouped_linear(x, terms[:count], terms[count:] or None), axis=-1)

    return Case(
        "grouped_linear",
        f"{x} to {sizes}{' with biases' if bias else ''}",
        normal(x, *((n, x[-1]) for n in sizes), *((n,) for n in sizes if bias)),
        grouped,
        lambda x, *terms: np.concatenate(
            [x @ w.T + (terms[count + i] if bias else 0.0) for i, w in enumerate(terms[:count])], -1
        ),
        tolerance(x[-1]),
    )


CASES = [matmul_case(*shapes) for shapes in SMALL]
CASES += [matmul_case(*shapes, gradient=False) for shapes in LARGE]
CASES += [
    Case("matmul", "a matrix by itself", normal((6, 6)), lambda x: x @ x, lambda x: x @ x, tolerance(6)),
    Case("matmul", "a matrix by its transpose", normal((5, 7)), lambda x: x @ x.T, lambda x: x @ x.T, tolerance(7)),
    *[linear_case(x, n) for x, n in [((1, 1), 1), ((3,), 5), ((1, 19), 7), ((4, 7), 9), ((5, 7), 9), ((2, 3, 5), 4)]],
    *[linear_case(x, n, bias=True) for x, n in [((1, 3), 2), ((2, 3, 5), 4)]],
    *[linear_case(x, n) for x, n in [((0, 3), 4), ((3, 0), 4), ((3, 4), 0), ((2, 0, 3), 4)]],
    Case(
        "linear",
        "the same weight twice",
        normal((3, 5), (5, 5)),
        same_weight_twice,
        lambda x, w: x @ w.T @ w.T,
        2 * tolerance(5),
    ),
    *[linear_case((m, k), n, gradient=False) for m in (1, 3, 4) for n, k in ((33, 67), (130, 513), (17, 1100))],
    *[linear_case((m, k), n, gradient=False) for m, n, k in ((5, 33, 67), (33, 50, 769), (130, 97, 400))],
    linear_case((2, 520, 40), 70, gradient=False),
    *[frozen_case(weight_type, (2, 3, columns), 5) for weight_type, columns in FROZEN.items() if columns > 1],
    frozen_case("bfloat16", (2, 3, 7), 5),
    *[frozen_case("q4_1", x, 3) for x in ((32,), (4, 96), (5, 96))],
    *[
        frozen_case(weight_type, (m, whole_blocks(weight_type, 576)), 70, gradient=False)
        for weight_type in FROZEN
        for m in (1, 2, 3, 4, 5, 75)
    ],
    *[
        frozen_case(weight_type, (m, 1056), 33, gradient=False)
        for weight_type in ("bfloat16", "q4_0", "q4_1", "q8_0")
        for m in (2, 40)
    ],
    *[frozen_case("bfloat16", (m, 451), 35, gradient=False) for m in (1, 3, 19)],
    *[lora_case("float32", (2, 3, 7), 5, 2, dropout=dropout) for dropout in (0.0, 0.25)],
    *[
        lora_case(weight_type, (3, whole_blocks(weight_type, 64)), 5, 4, dropout=dropout)
        for weight_type in FROZEN
        for dropout in (0.0, 0.5)
    ],
    lora_case("float32", (6, 5), 4, 1, scaling=-0.3),
    lora_case("float32", (0, 5), 4, 2),
    *[lora_case(weight_type, (2, 3, 64), 5, 2, dropout=0.25, bias=True) for weight_type in ("float32", "nf4")],
    *[
        grouped_case(x, sizes, bias)
        for x, sizes in [((2, 3, 5), (4, 1, 3)), ((7, 6), (5,)), ((0, 3), (2, 2))]
        for bias in (False, True)
    ],
    *[
        lora_case(weight_type, (m, whole_blocks(weight_type, 448)), 65, rank, scaling, dropout, gradient=False)
        for weight_type in ("float32", *FROZEN)
        for m, rank, scaling, dropout in ((37, 16, 2.0, 0.1), (1, 8, 0.5, 0.0))
    ],
]
