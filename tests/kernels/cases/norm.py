"""Cases of rms_norm and layer_norm. Partial sums of a weight's gradient cover 32 rows each."""

from __future__ import annotations

import numpy as np

from entrenar import autograd

from .base import Case, normal

Shape = tuple[int, ...]


def reference_rms_norm(x: np.ndarray, w: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w


def reference_layer_norm(x: np.ndarray, w: np.ndarray | float, b: np.ndarray | float, eps: float = 1e-5) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * w + b


def rms_case(shape: Shape, eps: float = 1e-5, gradient: bool = True) -> Case:
    return Case(
        "rms_norm",
        f"{shape} eps {eps}",
        normal(shape, shape[-1:]),
        lambda x, w: autograd.rms_norm(x, w, eps),
        lambda x, w: reference_rms_norm(x, w, eps),
        tolerance=1.5e-7,
        gradient=gradient,
    )


def layer_case(shape: Shape, parts: str = "wb", eps: float = 1e-5, gradient: bool = True) -> Case:
    """`parts` says which of weight and bias there are."""

    def split(rest: tuple) -> tuple:
        given = dict(zip(parts, rest, strict=True))
        return given.get("w"), given.get("b")

    def reference(x: np.ndarray, *rest: np.ndarray) -> np.ndarray:
        w, b = split(rest)
        return reference_layer_norm(x, 1.0 if w is None else w, 0.0 if b is None else b, eps)

    return Case(
        "layer_norm",
        f"{shape} {parts or 'plain'} eps {eps}",
        normal(shape, *[shape[-1:]] * len(parts)),
        lambda x, *rest: autograd.layer_norm(x, *split(rest), eps),
        reference,
        tolerance=2e-7,
        gradient=gradient,
    )


LARGE = [(1, 576), (31, 48), (32, 100), (33, 577), (65, 33), (3, 70, 130), (2, 2048), (700, 64)]
CASES = [
    # of a single element the gradient is eps / (x^2 + eps)^1.5: visible with a large eps only
    rms_case((3, 1), eps=0.5),
    rms_case((5,)),
    rms_case((1, 2), eps=0.1),
    *[rms_case(shape) for shape in [(1, 7), (4, 16), (2, 3, 19), (35, 5), (2, 67), (0, 8)]],
    *[rms_case(shape, gradient=False) for shape in LARGE],
    layer_case((3, 1), gradient=False),
    layer_case((5,)),
    *[layer_case((4, 9), parts) for parts in ("", "w", "b", "wb")],
    *[layer_case(shape) for shape in [(1, 7), (4, 16), (2, 3, 19), (35, 5), (2, 67), (0, 8)]],
    layer_case((2, 3), eps=0.1),
    *[layer_case(shape, gradient=False) for shape in LARGE],
    layer_case((40, 257), "", gradient=False),
]
