"""RMSNorm and layer norm beyond their cases: gradients at length, magnitudes at the ends of float32, NaN, errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from entrenar import autograd
from entrenar.autograd import Tensor
from entrenar.errors import ConfigError, ShapeError

from .cases.norm import reference_layer_norm, reference_rms_norm


def gradients(run: Callable[..., Tensor], arrays: list[np.ndarray], upstream: np.ndarray) -> list[np.ndarray]:
    tensors = [Tensor(array, requires_grad=True) for array in arrays]
    run(*tensors).backward(Tensor(upstream))
    return [tensor.grad.numpy() for tensor in tensors]


def exact_gradients(x: np.ndarray, w: np.ndarray, dy: np.ndarray, centered: bool) -> list[np.ndarray]:
    """dx, dw and db in float64: dx is the part of dy w that is orthogonal to xhat (and to 1), over sigma."""
    x, w, dy = (array.astype(np.float64) for array in (x, w, dy))
    x = x - x.mean(-1, keepdims=True) if centered else x
    rstd = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    xhat, g = x * rstd, dy * w
    along = g - xhat * (g * xhat).mean(-1, keepdims=True)
    if centered:
        along = along - g.mean(-1, keepdims=True)
    axes = tuple(range(x.ndim - 1))
    return [rstd * along, (dy * xhat).sum(axes), dy.sum(axes)]


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.gradient
@pytest.mark.parametrize(
    "shape", [(1, 5), (31, 48), (32, 64), (33, 67), (100, 577), (2, 3, 37, 20), (700, 33)], ids=str
)
@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
def test_gradients_agree_with_float64(op: str, shape: tuple[int, ...], tier: str) -> None:
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((2, *shape)).astype(np.float32)
    w, b = rng.standard_normal((2, shape[-1])).astype(np.float32)
    arrays = [x, w] if op == "rms_norm" else [x, w, b]
    expected = exact_gradients(x, w, dy, op == "layer_norm")
    for found, exact in zip(gradients(getattr(autograd, op), arrays, dy), expected, strict=False):
        assert relative_error(found, exact) < 4e-7


@pytest.mark.unit
@pytest.mark.parametrize("magnitude", [1e-30, 1e-19, 1e-3, 1e10, 1e19, 1e25, 1e37])
def test_no_magnitude_becomes_zero_or_not_a_number(magnitude: float, tier: str) -> None:
    x = np.random.default_rng(2).standard_normal((3, 67)) * magnitude
    x[1] = magnitude * np.sign(x[1])
    x = x.astype(np.float32)
    w = np.ones(67, np.float32)
    exact = x.astype(np.float64)
    for y, expected in (
        (autograd.rms_norm(x, w).numpy(), reference_rms_norm(exact, w)),
        (autograd.layer_norm(x).numpy(), reference_layer_norm(exact, 1.0, 0.0)),
    ):
        assert relative_error(y, expected) < 3e-7, magnitude


@pytest.mark.gradient
@pytest.mark.parametrize("magnitude", [1e19, 1e25, 1e37])
def test_gradients_of_huge_rows_are_finite_and_right(magnitude: float, tier: str) -> None:
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((4, 67)) * magnitude).astype(np.float32)
    w, b = rng.standard_normal((2, 67)).astype(np.float32)
    dy = rng.standard_normal((4, 67)).astype(np.float32)
    # dx is of the size 1 / magnitude: subnormal in float32 from 1e38 on
    for op, arrays in (("rms_norm", [x, w]), ("layer_norm", [x, w, b])):
        expected = exact_gradients(x, w, dy, op == "layer_norm")
        for found, exact in zip(gradients(getattr(autograd, op), arrays, dy), expected, strict=False):
            assert relative_error(found.astype(np.float64), exact) < 2e-6, op


@pytest.mark.unit
def test_layer_norm_does_not_cancel_beside_a_large_mean(tier: str) -> None:
    x = (np.random.default_rng(4).standard_normal((5, 300)) + 4096).astype(np.float32)
    # the mean is rounded to 2^-12; a difference of squares would be off by units
    assert relative_error(autograd.layer_norm(x).numpy(), reference_layer_norm(x.astype(np.float64), 1.0, 0.0)) < 5e-4


@pytest.mark.unit
def test_rows_of_zeros_stay_zeros_with_finite_gradients(tier: str) -> None:
    x = np.zeros((3, 20), np.float32)
    for op in (autograd.rms_norm, autograd.layer_norm):
        tensor = Tensor(x, requires_grad=True)
        y = op(tensor, np.ones(20))
        y.backward(Tensor(np.arange(60.0).reshape(3, 20)))
        assert not y.numpy().any()
        assert np.isfinite(tensor.grad.numpy()).all()
        assert tensor.grad.numpy().any()


@pytest.mark.unit
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 30, 66])
def test_not_a_number_spoils_its_row_and_no_other(bad: float, column: int, tier: str) -> None:
    x = np.random.default_rng(5).standard_normal((3, 67)).astype(np.float32)
    for op in (autograd.rms_norm, autograd.layer_norm):
        x[1, column] = 0
        before = op(x, np.ones(67)).numpy().copy()
        x[1, column] = bad
        after = op(x, np.ones(67)).numpy()
        assert np.isnan(after[1, column])
        assert np.isnan(after[1]).all() or (np.isinf(bad) and op is autograd.rms_norm)
        np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])


@pytest.mark.gradient
@pytest.mark.parametrize("trained", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_only_what_is_wanted_gets_a_gradient_and_gradients_add_up(trained: tuple[int, ...], tier: str) -> None:
    rng = np.random.default_rng(6)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((40, 19), (19,), (19,))]
    upstream = rng.standard_normal((40, 19)).astype(np.float32)
    for op, count in ((autograd.rms_norm, 2), (autograd.layer_norm, 3)):
        wanted = [i for i in trained if i < count]
        if not wanted:
            continue
        alone = gradients(op, arrays[:count], upstream)
        tensors = [Tensor(array, requires_grad=i in wanted) for i, array in enumerate(arrays[:count])]
        for _ in range(2):
            op(*tensors).backward(Tensor(upstream))
        assert [i for i, tensor in enumerate(tensors) if tensor.grad is not None] == wanted
        for i in wanted:
            np.testing.assert_allclose(tensors[i].grad.numpy(), 2 * alone[i], rtol=2e-6, atol=2e-6)


@pytest.mark.gradient
def test_one_vector_may_be_its_own_weight_and_bias(tier: str) -> None:
    x, upstream = np.random.default_rng(7).standard_normal((2, 9)).astype(np.float32)
    for op, count in ((autograd.rms_norm, 2), (autograd.layer_norm, 3)):
        apart = gradients(op, [x] * count, upstream)
        tensor = Tensor(x, requires_grad=True)
        op(*[tensor] * count).backward(Tensor(upstream))
        np.testing.assert_allclose(tensor.grad.numpy(), np.sum(apart, axis=0), rtol=1e-6, atol=1e-6)


@pytest.mark.unit
def test_what_does_not_fit_is_refused() -> None:
    x = np.ones((2, 6), np.float32)
    with pytest.raises(ShapeError, match=r"rms_norm: weight has shape \(5,\), expected \(6,\) .* of x \(2, 6\)"):
        autograd.rms_norm(x, np.ones(5))
    with pytest.raises(ShapeError, match=r"layer_norm: bias has shape \(1, 6\), expected \(6,\)"):
        autograd.layer_norm(x, np.ones(6), np.ones((1, 6)))
    for op in (autograd.rms_norm, autograd.layer_norm):
        for shape in ((), (3, 0)):
            with pytest.raises(ShapeError, match="last axis of at least one element"):
                op(np.ones(shape), np.ones(shape[-1:]))
        with pytest.raises(ConfigError, match="bfloat16"):
            op(Tensor(x, dtype="bfloat16"), np.ones(6))
