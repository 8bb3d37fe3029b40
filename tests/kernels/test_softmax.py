"""Softmax and log-softmax beyond their cases: extreme scores, masked entries, NaN, gradients at length, errors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from entrenar import autograd
from entrenar.autograd import Tensor, memory_stats, reset_peak_memory
from entrenar.errors import ConfigError, ShapeError

from .cases.softmax import reference_log_softmax, reference_softmax

INF, NAN = float("inf"), float("nan")
both = pytest.mark.parametrize("op", ["softmax", "log_softmax"])


def exact(op: str, x: np.ndarray) -> np.ndarray:
    return {"softmax": reference_softmax, "log_softmax": reference_log_softmax}[op](x.astype(np.float64))


def backward(op: str, x: np.ndarray, upstream: np.ndarray) -> np.ndarray:
    tensor = Tensor(x, requires_grad=True)
    getattr(autograd, op)(tensor).backward(Tensor(upstream))
    return tensor.grad.numpy()


@pytest.mark.gradient
@both
@pytest.mark.parametrize("shape", [(3, 7), (65, 64), (40, 1001), (2, 3, 5, 33)], ids=str)
def test_gradients_agree_with_float64(op: str, shape: tuple[int, ...], tier: str) -> None:
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((2, *shape)).astype(np.float32)
    p = exact("softmax", x)
    g = dy.astype(np.float64)
    expected = p * (g - (g * p).sum(-1, keepdims=True)) if op == "softmax" else g - p * g.sum(-1, keepdims=True)
    found = backward(op, x, dy)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 3e-7


@pytest.mark.unit
@both
@pytest.mark.parametrize("scale", [1e4, 1e30, 3e38])
def test_scores_of_any_size_neither_overflow_nor_lose_the_winner(op: str, scale: float, tier: str) -> None:
    rng = np.random.default_rng(2)
    x = (rng.uniform(-1, 1, (9, 67)) * scale).astype(np.float32)
    y = getattr(autograd, op)(x).numpy()
    expected = exact(op, x)
    if op == "softmax":
        np.testing.assert_allclose(y, expected, rtol=2e-6, atol=1e-38)
        np.testing.assert_array_equal(y.argmax(-1), x.argmax(-1))
    else:
        with np.errstate(over="ignore"):  # a difference of two scores may lie beyond float32
            np.testing.assert_allclose(y, expected.astype(np.float32), rtol=2e-7, atol=1e-7)


@pytest.mark.unit
def test_log_softmax_keeps_what_softmax_rounds_to_zero(tier: str) -> None:
    x = np.array([[0.0, -1000.0, -200.0]], np.float32)
    np.testing.assert_array_equal(autograd.softmax(x).numpy(), [[1, 0, 0]])
    np.testing.assert_array_equal(autograd.log_softmax(x).numpy(), x)


@pytest.mark.property
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 5), st.integers(1, 150), st.integers(-100_000, 100_000), st.integers(0, 2**32 - 1))
def test_rows_are_probabilities_and_a_shift_changes_nothing(
    tier: str, rows: int, n: int, shift: int, seed: int
) -> None:
    # eighths: the shifted scores are exact in float32
    x = np.random.default_rng(seed).integers(-80, 80, (rows, n)) / 8
    y = autograd.softmax(x).numpy()
    assert (y >= 0).all()
    np.testing.assert_allclose(y.sum(-1, dtype=np.float64), 1, rtol=1e-6)
    np.testing.assert_array_equal(autograd.softmax(x + shift).numpy(), y)
    np.testing.assert_array_equal(autograd.log_softmax(x + shift).numpy(), autograd.log_softmax(x).numpy())


@pytest.mark.unit
@pytest.mark.parametrize("n", [5, 16, 67])
def test_masked_entries_get_probability_zero_and_no_gradient(n: int, tier: str) -> None:
    rng = np.random.default_rng(3)
    x, dy = rng.standard_normal((2, 3, n)).astype(np.float32)
    masked = rng.random((3, n)) < 0.5
    masked[:, 1] = False
    x[masked] = -INF
    y = autograd.softmax(x).numpy()
    assert not y[masked].any()
    for row in range(3):
        alone = autograd.softmax(x[row, ~masked[row]]).numpy()
        np.testing.assert_allclose(y[row, ~masked[row]], alone, rtol=3e-7)
    assert (autograd.log_softmax(x).numpy()[masked] == -INF).all()
    assert not backward("softmax", x, dy)[masked].any()


@pytest.mark.unit
@both
@pytest.mark.parametrize("n", [1, 5, 16, 67])
@pytest.mark.parametrize("bad", [NAN, INF, "masked"])
def test_a_row_without_an_answer_says_so_and_spoils_no_other(op: str, n: int, bad: float | str, tier: str) -> None:
    x = np.random.default_rng(4).standard_normal((3, n)).astype(np.float32)
    before = getattr(autograd, op)(x).numpy().copy()
    for column in {0, n // 2, n - 1}:
        broken = x.copy()
        if bad == "masked":
            broken[1] = -INF  # no entry is left, as in PyTorch
        else:
            broken[1, column] = bad
        after = getattr(autograd, op)(broken).numpy()
        assert np.isnan(after[1]).all()
        np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])


@pytest.mark.memory
@both
@pytest.mark.parametrize("axis", [-1, 2])
def test_rows_along_the_last_axis_are_read_where_they_are(op: str, axis: int) -> None:
    x = Tensor(np.ones((5, 20, 300)))
    before = memory_stats()["in_use"]
    reset_peak_memory()
    y = getattr(autograd, op)(x, axis)
    assert memory_stats()["peak"] - before < 1.5 * y.nbytes  # the result, and no transposed copy


@pytest.mark.gradient
@both
@pytest.mark.parametrize("n", [5, 67])
def test_a_second_use_adds_its_gradient(op: str, n: int, tier: str) -> None:
    x, one, two = np.random.default_rng(5).standard_normal((3, 4, n)).astype(np.float32)
    tensor = Tensor(x, requires_grad=True)
    for upstream in (one, two):
        getattr(autograd, op)(tensor).backward(Tensor(upstream))
    expected = backward(op, x, one) + backward(op, x, two)
    np.testing.assert_allclose(tensor.grad.numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.unit
@both
def test_what_does_not_fit_is_refused(op: str) -> None:
    run = getattr(autograd, op)
    for axis in (2, -3):
        with pytest.raises(ShapeError, match=rf"{op}: axis {axis} is outside the 2 axes of x \(3, 4\)"):
            run(np.ones((3, 4)), axis)
    with pytest.raises(ShapeError, match="outside the 0 axes"):
        run(1.0)
    with pytest.raises(ConfigError, match="bfloat16"):
        run(Tensor(np.ones(3), dtype="bfloat16"))
