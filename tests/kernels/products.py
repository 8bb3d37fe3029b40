"""What the tests of products share: random operands, the three products of a linear, how far two arrays are apart."""

from __future__ import annotations

import numpy as np

from entrenar import autograd
from entrenar.autograd import Tensor


def normal(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def exact(*arrays: np.ndarray) -> list[np.ndarray]:
    return [array.astype(np.float64) for array in arrays]


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), 1e-12))


def three_products(x: np.ndarray, w: np.ndarray, dy: np.ndarray) -> list[np.ndarray]:
    """Y = X W^T, dX = dY W and dW = dY^T X."""
    tensors = [Tensor(x, requires_grad=True), Tensor(w, requires_grad=True)]
    y = autograd.linear(*tensors)
    y.backward(Tensor(dy))
    return [y.numpy(), *[tensor.grad.numpy() for tensor in tensors]]
