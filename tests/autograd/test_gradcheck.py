"""The gradient check itself: it passes right gradients and catches each kind of wrong one."""

from __future__ import annotations

import numpy as np
import pytest

from entrenar import autograd
from entrenar.autograd import Tensor, gradcheck, no_grad
from entrenar.errors import NumericsError


def inputs(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [np.asarray(rng.uniform(0.5, 2.0, shape), dtype=np.float32) for shape in shapes]


def constant(x: Tensor) -> Tensor:
    """x's values without its graph: what a forgotten gradient looks like."""
    with no_grad():
        return x * 1.0


@pytest.mark.gradient
def test_right_gradients_have_small_errors() -> None:
    found = gradcheck.errors(lambda a, b: a * b / (a + 2.0), inputs((4, 5), (5,)))
    assert set(found) == {0, 1}
    assert max(found.values()) < 1e-3


@pytest.mark.gradient
@pytest.mark.parametrize(
    ("run", "error"),
    [
        (lambda x: constant(x) * x, 0.5),  # half of the gradient is missing
        (lambda x: constant(x) * 1.0 + x * 0.0, 1.0),  # all of it
        (lambda x: x * 1.1 - constant(x) * 0.1, 0.1),
        (lambda x: constant(x) * 2.0 - x, 2.0),  # the sign
    ],
)
def test_wrong_gradients_have_errors_of_the_right_size(run, error) -> None:
    assert gradcheck.errors(run, inputs((6, 7)))[0] == pytest.approx(error, rel=0.05)
    with pytest.raises(NumericsError, match=r"input 0.*WRONG"):
        gradcheck.check(run, inputs((6, 7)))


@pytest.mark.gradient
def test_an_input_that_got_no_gradient_counts_as_zeros() -> None:
    found = gradcheck.errors(lambda a, b: a * 1.0 + constant(b), inputs((3,), (3,)))
    assert found[0] < 1e-3
    assert found[1] == pytest.approx(1.0)


@pytest.mark.gradient
def test_gradient_given_to_the_wrong_element_is_caught() -> None:
    def run(x):
        return x[::-1] * 1.0 - constant(x[::-1]) + constant(x)

    assert gradcheck.errors(run, inputs((9,)))[0] > 0.5


@pytest.mark.gradient
def test_only_the_listed_inputs_are_checked() -> None:
    found = gradcheck.errors(lambda a, b: a * b, inputs((3,), (3,)), differentiable=[1])
    assert list(found) == [1]
    assert gradcheck.errors(autograd.neg, inputs((3,)), differentiable=()) == {}


@pytest.mark.gradient
def test_numeric_gradient_of_a_linear_function_is_its_matrix() -> None:
    matrix = np.random.default_rng(4).standard_normal((5, 3)).astype(np.float32)
    weights = np.random.default_rng(5).standard_normal((5,))
    numeric = gradcheck.numeric_gradient(lambda x: (x * matrix).sum(1), inputs((3,)), 0, weights)
    np.testing.assert_allclose(numeric, weights @ matrix, rtol=2e-3, atol=1e-3)


@pytest.mark.gradient
def test_nan_is_no_pass() -> None:
    with pytest.raises(NumericsError, match="WRONG"):
        gradcheck.check(lambda x: x / 0.0, inputs((3,)))
