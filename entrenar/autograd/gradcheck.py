"""Gradients against finite differences, by random projection: the check every op must pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from entrenar.autograd.tape import no_grad
from entrenar.autograd.tensor import Tensor
from entrenar.errors import NumericsError

LIMIT = 0.02  # norm-wise relative error that a float32 op stays below at STEP
STEP = 1e-3
TINY = 1e-12


def _projection(run: Callable[..., Tensor], arrays: Sequence[np.ndarray], weights: np.ndarray) -> float:
    """<weights, run(arrays)>, summed in float64."""
    with no_grad():
        out = run(*[Tensor(array) for array in arrays]).numpy().astype(np.float64)
    with np.errstate(invalid="ignore"):  # a NaN makes the error NaN, which is no pass
        return float(np.sum(out * weights))


def numeric_gradient(
    run: Callable[..., Tensor], arrays: Sequence[np.ndarray], position: int, weights: np.ndarray, step: float = STEP
) -> np.ndarray:
    """Central differences of <weights, run(arrays)> with respect to arrays[position], in float64."""
    moved = [np.array(array, dtype=np.float32) for array in arrays]
    flat = moved[position].reshape(-1)
    gradient = np.zeros(flat.size)
    for i in range(flat.size):
        original = flat[i]
        above, below = np.float32(original + step), np.float32(original - step)
        flat[i] = above
        plus = _projection(run, moved, weights)
        flat[i] = below
        minus = _projection(run, moved, weights)
        flat[i] = original
        gradient[i] = (plus - minus) / (float(above) - float(below))  # the step that float32 really took
    return gradient.reshape(moved[position].shape)


def errors(
    run: Callable[..., Any],
    arrays: Sequence[np.ndarray],
    differentiable: Sequence[int] | None = None,
    step: float = STEP,
    seed: int = 0,
) -> dict[int, float]:
    """The error of each input's gradient: ||numeric - analytic|| / ||numeric||.

    `run(*tensors)` is differentiated at `arrays` (float32) through <r, run(...)> with a standard normal r of the
    output's shape. The numeric side is a central difference of `step`, summed in float64. `differentiable` lists the
    inputs to check (None: all). An input that got no gradient counts as a gradient of zeros; `run` must be a function
    of its inputs alone (seed dropout inside it).
    """
    positions = range(len(arrays)) if differentiable is None else differentiable
    arrays = [np.asarray(array, dtype=np.float32) for array in arrays]
    if not len(positions):
        return {}
    tensors = [Tensor(array, requires_grad=i in positions) for i, array in enumerate(arrays)]
    out = run(*tensors)
    # float32 values, so that both sides project with the same numbers
    weights = np.random.default_rng(seed).standard_normal(out.shape).astype(np.float32)
    out.backward(Tensor(weights))
    found = {}
    for i in positions:
        grad = tensors[i].grad
        analytic = np.zeros(arrays[i].shape) if grad is None else grad.numpy().astype(np.float64)
        numeric = numeric_gradient(run, arrays, i, weights.astype(np.float64), step)
        difference = float(np.linalg.norm(numeric - analytic))
        found[i] = difference / max(float(np.linalg.norm(numeric)), TINY) if difference else 0.0
    return found


def check(
    run: Callable[..., Any],
    arrays: Sequence[np.ndarray],
    differentiable: Sequence[int] | None = None,
    step: float = STEP,
    seed: int = 0,
    limit: float = LIMIT,
) -> dict[int, float]:
    """`errors(...)`, or a NumericsError that lists every input where one exceeds `limit` (or is NaN)."""
    found = errors(run, arrays, differentiable, step, seed)
    if all(error <= limit for error in found.values()):
        return found
    listed = "; ".join(
        f"input {i} of shape {np.shape(arrays[i])}: {error:.2e}, {'right' if error <= limit else 'WRONG'}"
        for i, error in found.items()
    )
    raise NumericsError(f"Gradients differ from finite differences by more than {limit:g} (norm-wise): {listed}.")
