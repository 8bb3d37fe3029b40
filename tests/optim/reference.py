"""What the optimizer tests share: parameters of awkward sizes, gradients, and the run of ours beside torch's."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from entrenar.autograd import Tensor

SHAPES: tuple[tuple[int, ...], ...] = ((37, 19), (5,), (1,), (), (40_001,))
STEPS = 100


def starting_point(shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [np.asarray(rng.standard_normal(shape), dtype=np.float32) for shape in shapes]


@functools.cache
def gradients(step: int, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[np.ndarray]:
    rng = np.random.default_rng(100 + step)
    scale = 10.0 ** rng.uniform(-3, 1)
    return [np.asarray(rng.standard_normal(shape) * scale, dtype=np.float32) for shape in shapes]


def run(make: Callable[[list[Tensor]], Any], steps: int = STEPS) -> list[np.ndarray]:
    """The parameters after `steps` steps of the optimizer that `make` returns."""
    tensors = [Tensor(p, requires_grad=True) for p in starting_point()]
    optimizer = make(tensors)
    for step in range(steps):
        for tensor, gradient in zip(tensors, gradients(step), strict=True):
            tensor.grad = gradient
        optimizer.step()
    return [tensor.numpy().copy() for tensor in tensors]


def run_torch(make: Callable[[list[Any]], Any], steps: int = STEPS) -> list[np.ndarray]:
    """The same with a torch optimizer, on one thread: its pool and ours would fight for the cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    tensors = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in starting_point()]
    optimizer = make(tensors)
    for step in range(steps):
        for tensor, gradient in zip(tensors, gradients(step), strict=True):
            tensor.grad = torch.from_numpy(gradient)
        optimizer.step()
    torch.set_num_threads(before)
    return [tensor.detach().numpy() for tensor in tensors]


def assert_close(ours: list[np.ndarray], theirs: list[np.ndarray], tolerance: float) -> None:
    """Norm-wise, relative, of each parameter by itself."""
    for mine, other in zip(ours, theirs, strict=True):
        error = np.linalg.norm(mine - other) / np.linalg.norm(other)
        assert error <= tolerance, f"shape {mine.shape}: relative error {error:.2e}"
