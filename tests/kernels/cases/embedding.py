"""Cases of embedding: repeated ids, every type of the table, strides of 64 columns and of 256 rows."""

from __future__ import annotations

import numpy as np

from entrenar import autograd

from .base import Case, normal
from .weights import FROZEN, frozen_weight, whole_blocks

Shape = tuple[int, ...]


def make_tokens(shape: Shape, vocabulary: int) -> np.ndarray:
    """Random ids; with more ids than rows of the table some are repeated, others absent."""
    return np.random.default_rng([*shape, vocabulary]).integers(0, vocabulary, shape)


def case(shape: Shape, vocabulary: int, hidden: int, gradient: bool = True, tokens: np.ndarray | None = None) -> Case:
    ids = make_tokens(shape, vocabulary) if tokens is None else tokens
    repeated = "" if tokens is None else f" of {ids.tolist()}"
    return Case(
        "embedding",
        f"{shape}{repeated} from {vocabulary}x{hidden}",
        normal((vocabulary, hidden)),
        lambda table: autograd.embedding(ids, table),
        lambda table: table[ids],
        tolerance=0.0,
        gradient=gradient,
    )


def frozen_case(weight_type: str, shape: Shape, vocabulary: int, hidden: int) -> Case:
    ids = make_tokens(shape, vocabulary)
    return Case(
        "embedding",
        f"{weight_type} {shape} from {vocabulary}x{hidden}",
        lambda rng: [],
        lambda: autograd.embedding(ids, frozen_weight(weight_type, vocabulary, hidden)[0]),
        lambda: frozen_weight(weight_type, vocabulary, hidden)[1][ids],
        tolerance=0.0,
        gradient=False,
        differentiable=(),
    )


CASES = [
    case((), 3, 5),
    case((1,), 1, 1),
    case((2, 3), 4, 7),
    case((6,), 5, 3, tokens=np.array([2, 2, 4, 2, 0, 4], np.int32)),
    case((4,), 3, 9, tokens=np.array([1, 1, 1, 1], np.uint8)),
    case((0,), 3, 4),
    case((2, 0, 3), 3, 4),
    case((1000,), 50, 200, gradient=False),
    case((3, 130), 700, 65, gradient=False),
    case((70,), 513, 576, gradient=False),
    *[frozen_case(weight_type, (2, 9), 30, whole_blocks(weight_type, 192)) for weight_type in FROZEN],
    frozen_case("bfloat16", (300,), 40, 67),
]
