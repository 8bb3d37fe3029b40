"""Cases of the elementwise functions and of swiglu and geglu. A job is 4096 elements; vectors hold 4, 8 or 16."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from entrenar import autograd

from .base import Case, away_from, normal, positive

Shape = tuple[int, ...]
erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


# label -> op, call, float64 reference, inputs, tolerance; rounding errors of single elements, so tolerances near an ulp
Entry = tuple[str, Callable, Callable, Callable, float]
FUNCTIONS: dict[str, Entry] = {
    "relu": ("relu", autograd.relu, lambda x: np.maximum(x, 0), lambda *s: away_from((0.0,), *s), 0.0),
    "gelu": ("gelu", autograd.gelu, gelu, normal, 8e-8),
    "gelu tanh": ("gelu", lambda x: autograd.gelu(x, approximate="tanh"), gelu_tanh, normal, 8e-8),
    "silu": ("silu", autograd.silu, lambda x: x * sigmoid(x), normal, 8e-8),
    "sigmoid": ("sigmoid", autograd.sigmoid, sigmoid, normal, 7e-8),
    "tanh": ("tanh", autograd.tanh, np.tanh, normal, 7e-8),
    "exp": ("exp", autograd.exp, np.exp, normal, 7e-8),
    "log": ("log", autograd.log, np.log, positive, 7e-8),
    "sqrt": ("sqrt", autograd.sqrt, np.sqrt, positive, 5e-8),
}
for _exponent in (0, 1, 2, 3, 0.5, -1.5):
    FUNCTIONS[f"pow {_exponent}"] = (
        "pow",
        lambda x, e=_exponent: autograd.pow(x, e),
        lambda x, e=_exponent: x**e,
        positive,
        6e-8,
    )
for _cap in (0.5, 30.0):
    FUNCTIONS[f"softcap {_cap}"] = (
        "softcap",
        lambda x, c=_cap: autograd.softcap(x, c),
        lambda x, c=_cap: c * np.tanh(x / c),
        normal,
        1e-7,
    )
SHAPES: list[Shape] = [(), (1,), (7,), (3, 5, 5), (67,), (0, 4)]
LARGE: list[Shape] = [(4096,), (4097,), (301, 1023)]


def label(name: str, op: str, shape: Shape) -> str:
    return f"{name.removeprefix(op).strip()} {shape}".strip()


def map_case(name: str, shape: Shape, gradient: bool) -> Case:
    op, run, reference, inputs, tolerance = FUNCTIONS[name]
    # a single element has the error of the worst one
    single = 3e-7 if tolerance and math.prod(shape) < 8 else tolerance
    return Case(op, label(name, op, shape), inputs(shape), run, lambda x: np.asarray(reference(x)), single, gradient)


def swiglu_reference(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return gate * sigmoid(gate) * up


def geglu_reference(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return gelu_tanh(gate) * up


GATED = {"swiglu": (autograd.swiglu, swiglu_reference), "geglu": (autograd.geglu, geglu_reference)}


def gated_case(op: str, shape: Shape, gradient: bool) -> Case:
    run, reference = GATED[op]
    return Case(
        op,
        f"{shape}",
        normal(shape, shape),
        run,
        lambda *arrays: np.asarray(reference(*arrays)),
        tolerance=3e-7 if math.prod(shape) < 8 else 1e-7,
        gradient=gradient,
    )


def shared_case(op: str) -> Case:
    run, reference = GATED[op]
    return Case(
        op,
        "one tensor as gate and up",
        normal((5, 7)),
        lambda x: run(x, x),
        lambda x: reference(x, x),
        tolerance=1e-7,
    )


CASES = [map_case(name, shape, True) for name in FUNCTIONS for shape in SHAPES]
CASES += [map_case(name, shape, False) for name in FUNCTIONS for shape in LARGE]
CASES += [gated_case(op, shape, True) for op in GATED for shape in SHAPES]
CASES += [gated_case(op, shape, False) for op in GATED for shape in LARGE]
CASES += [shared_case(op) for op in GATED]
CASES += [
    Case("relu", "negative and zero", lambda rng: [-np.arange(9.0)], autograd.relu, np.zeros_like, 0.0, gradient=False),
    Case("pow", "square of negative numbers", normal((5, 7)), lambda x: x**2, np.square, 6e-8),
    Case("pow", "cube of negative numbers", normal((5, 7)), lambda x: x**3, lambda x: x**3, 6e-8),
]
