"""What the cases of sum, mean and max cannot say: errors, ties, NaN, accuracy, any axis."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from entrenar import autograd
from entrenar.autograd import Tensor
from entrenar.errors import ConfigError, ShapeError


@pytest.mark.unit
@pytest.mark.property
@settings(max_examples=80, deadline=None)
@given(data=st.data(), shape=hnp.array_shapes(min_dims=1, max_dims=6, max_side=4), keepdims=st.booleans())
def test_any_axes_agree_with_numpy(data, shape, keepdims) -> None:
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True, max_size=len(shape)))
    axes = tuple(a - len(shape) if data.draw(st.booleans()) else a for a in axes)
    x = np.random.default_rng(0).integers(-50, 50, shape).astype(np.float32)  # sums of integers are exact
    tensor = Tensor(x, requires_grad=True)
    assert np.array_equal(tensor.sum(axes, keepdims).numpy(), x.sum(axes, keepdims=keepdims))
    assert np.array_equal(tensor.max(axes, keepdims).numpy(), x.max(axes, keepdims=keepdims))
    total = tensor.sum(axes, keepdims)
    gradient = np.random.default_rng(1).standard_normal(total.shape).astype(np.float32)
    total.backward(gradient)
    expanded = np.broadcast_to(gradient if keepdims else np.expand_dims(gradient, axes), shape)
    assert np.array_equal(tensor.grad.numpy(), expanded)


@pytest.mark.unit
def test_long_sums_do_not_lose_small_terms(tier) -> None:
    """A float32 accumulator stops growing at 2^24; ours does not."""
    n = 20_000_000
    x = Tensor(np.ones(n, np.float32))
    assert x.sum().item() == n
    assert x.reshape(n // 8, 8).sum(0).tolist() == [n / 8] * 8
    assert x.mean().item() == 1.0


@pytest.mark.gradient
def test_ties_share_the_gradient_of_a_maximum(tier) -> None:
    x = Tensor([[1.0, 5.0, 5.0, 2.0], [7.0, 7.0, 7.0, 7.0]], requires_grad=True)
    x.max(1).backward([1.0, 2.0])
    assert x.grad.tolist() == [[0, 0.5, 0.5, 0], [0.5, 0.5, 0.5, 0.5]]


@pytest.mark.peers
@pytest.mark.parametrize("axis", [0, 1, (0, 2), (0, 1, 2)])
def test_maximum_agrees_with_torch_amax(axis) -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(2).integers(0, 4, (4, 5, 6)).astype(np.float32)
    ours, theirs = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    out, other = ours.max(axis), torch.amax(theirs, axis)
    weights = np.random.default_rng(3).standard_normal(out.shape).astype(np.float32)
    out.backward(weights)
    other.backward(torch.tensor(weights))
    assert np.array_equal(out.numpy(), other.detach().numpy())
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-6)


@pytest.mark.unit
@pytest.mark.parametrize("position", [0, 1, 17, 36])
def test_nan_wins_a_maximum(position, tier) -> None:
    x = np.random.default_rng(0).standard_normal((37, 41)).astype(np.float32)
    x[position, 3] = np.nan
    assert np.array_equal(Tensor(x).max(0).numpy(), x.max(0), equal_nan=True)
    assert np.array_equal(Tensor(x).max(1).numpy(), x.max(1), equal_nan=True)
    assert np.isnan(Tensor(x).max().item())


@pytest.mark.unit
def test_minus_infinity_is_a_maximum(tier) -> None:
    x = np.full((3, 21), -np.inf, np.float32)
    assert np.array_equal(Tensor(x).max(0).numpy(), x.max(0))
    assert np.array_equal(Tensor(x).max(1).numpy(), x.max(1))


@pytest.mark.unit
def test_bad_axes_are_named() -> None:
    x = Tensor(np.zeros((2, 3)))
    with pytest.raises(ShapeError, match=r"sum: axis 2 lies outside shape \(2, 3\)"):
        x.sum(2)
    with pytest.raises(ShapeError, match="mean: axis 1 is listed twice"):
        x.mean((1, -1))
    with pytest.raises(ShapeError, match="max: axis must be"):
        x.max(0.5)
    with pytest.raises(ShapeError, match=r"max: shape \(0, 3\) has nothing along axis 0"):
        Tensor(np.zeros((0, 3))).max(0)
    assert Tensor(np.zeros((0, 3))).max(1).shape == (0,)
    assert np.isnan(Tensor(np.zeros((0, 3))).mean(0).numpy()).all()
    with pytest.raises(ConfigError, match="sum: x is bfloat16"):
        autograd.sum(Tensor([1.0], dtype="bfloat16"))
