"""Gradient clipping against NumPy and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from entrenar._kernels import cpu
from entrenar.autograd import Tensor
from entrenar.errors import ConfigError, NumericsError
from entrenar.optim import clip_grad_norm, clip_grad_value

SHAPES = ((37, 19), (1,), (), (100_003,))


def parameters(scale: float = 1.0) -> list[Tensor]:
    rng = np.random.default_rng(5)
    made = []
    for shape in SHAPES:
        tensor = Tensor(np.zeros(shape), requires_grad=True)
        tensor.grad = rng.standard_normal(shape) * scale
        made.append(tensor)
    return made


def norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(np.sum(t.grad.numpy().astype(np.float64) ** 2)) for t in tensors))


@pytest.mark.unit
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e25])  # the square of the last overflows float32
def test_norm_is_the_float64_one_and_is_clipped(scale, tier) -> None:
    tensors = parameters(scale)
    before = norm(tensors)
    assert clip_grad_norm(tensors, 1.0) == pytest.approx(before, rel=1e-12)
    assert norm(tensors) == pytest.approx(min(before, 1.0), rel=1e-6)


@pytest.mark.unit
@pytest.mark.parametrize("beyond", [1.001, 1.4, 1.9])
def test_a_norm_just_above_the_limit_is_clipped(beyond) -> None:
    tensors = parameters()
    limit = norm(tensors) / beyond
    clip_grad_norm(tensors, limit)
    assert norm(tensors) == pytest.approx(limit, rel=1e-6)


@pytest.mark.unit
def test_small_gradients_keep_their_bits() -> None:
    tensors = parameters()
    bits = [t.grad.numpy().tobytes() for t in tensors]
    clip_grad_norm(tensors, 1e6)
    clip_grad_norm(tensors, math.inf)
    assert [t.grad.numpy().tobytes() for t in tensors] == bits


@pytest.mark.unit
def test_tied_parameter_counts_once_and_missing_gradient_not() -> None:
    tied, idle = Tensor([0.0, 0.0], requires_grad=True), Tensor([0.0], requires_grad=True)
    tied.grad = [3.0, 4.0]
    assert clip_grad_norm([("embed", tied), ("head", tied), ("idle", idle)], 1.0) == 5.0
    assert np.allclose(tied.grad.numpy(), [0.6, 0.8])


@pytest.mark.unit
def test_same_bits_for_any_thread_count(threads) -> None:
    found = set()
    for count in (1, 2, 3):
        cpu.set_num_threads(count)
        tensors = parameters()
        found.add((clip_grad_norm(tensors, 1.0), b"".join(t.grad.numpy().tobytes() for t in tensors)))
    assert len(found) == 1


@pytest.mark.unit
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_norm_names_the_parameter(value) -> None:
    good, bad = Tensor([0.0], requires_grad=True), Tensor([0.0, 0.0], requires_grad=True)
    good.grad, bad.grad = [2.0], [1.0, value]
    with pytest.raises(NumericsError, match=r"gradient of layers\.3\.up"):
        clip_grad_norm([("ok", good), ("layers.3.up", bad)], 1.0)
    assert good.grad.tolist() == [2.0]
    assert not math.isfinite(clip_grad_norm([good, bad], 1.0, error_if_nonfinite=False))


@pytest.mark.unit
def test_value_clipping(tier) -> None:
    tensors = parameters()
    expected = [np.clip(t.grad.numpy().copy(), -0.5, 0.5) for t in tensors]
    clip_grad_value(tensors, 0.5)
    for tensor, clipped in zip(tensors, expected, strict=True):
        assert np.array_equal(tensor.grad.numpy(), clipped)
    tensors[1].grad = [math.nan]
    clip_grad_value(tensors, 0.25)
    assert math.isnan(tensors[1].grad.item())


@pytest.mark.unit
def test_negative_limits_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_norm"):
        clip_grad_norm(parameters(), -1.0)
    with pytest.raises(ConfigError, match="clip_value"):
        clip_grad_value(parameters(), -1.0)


@pytest.mark.peers
def test_agrees_with_torch() -> None:
    torch = pytest.importorskip("torch")
    tensors = parameters()
    theirs = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    for tensor, other in zip(tensors, theirs, strict=True):
        other.grad = torch.from_numpy(tensor.grad.numpy().copy())
    assert clip_grad_norm(tensors, 2.0) == pytest.approx(float(torch.nn.utils.clip_grad_norm_(theirs, 2.0)), rel=1e-5)
    for tensor, other in zip(tensors, theirs, strict=True):
        np.testing.assert_allclose(tensor.grad.numpy(), other.grad.numpy(), rtol=1e-5)
