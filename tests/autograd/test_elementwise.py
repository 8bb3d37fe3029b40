"""What the cases of add, sub, mul, div and neg cannot say: errors, exact sums of paths, IEEE corners, NumPy's rules."""

from __future__ import annotations

import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from entrenar import autograd
from entrenar.autograd import Tensor
from entrenar.errors import ConfigError, ShapeError

OPERATORS = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "div": operator.truediv}


def random(*shape: int, requires_grad: bool = True) -> Tensor:
    return Tensor(np.random.default_rng(len(shape)).standard_normal(shape), requires_grad=requires_grad)


@pytest.mark.gradient
def test_tensor_used_twice_has_the_exact_gradient(tier) -> None:
    x = random(19, 7)
    (x * x).backward(np.ones((19, 7)))
    assert np.array_equal(x.grad.numpy(), 2 * x.numpy())
    y = random(19, 7)
    (y + y).backward(np.full((19, 7), 0.3))
    assert np.array_equal(y.grad.numpy(), np.full((19, 7), np.float32(0.3) * 2))
    z = random(19, 7)
    (z - z).backward(np.ones((19, 7)))
    assert np.array_equal(z.grad.numpy(), np.zeros((19, 7)))


@pytest.mark.gradient
def test_backward_leaves_the_gradient_it_was_given() -> None:
    given_gradient = Tensor(np.ones((3, 4)))
    x, bias = random(3, 4), random(4)
    y = x + bias
    (y + y - x * bias).backward(given_gradient)
    assert np.array_equal(given_gradient.numpy(), np.ones((3, 4)))
    np.testing.assert_allclose(x.grad.numpy(), np.broadcast_to(2 - bias.numpy(), (3, 4)), rtol=1e-6)
    np.testing.assert_allclose(bias.grad.numpy(), 6 - x.numpy().sum(0), rtol=1e-5)


@pytest.mark.unit
@pytest.mark.property
@settings(max_examples=60, deadline=None)
@given(
    shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=5, max_side=5), op=st.sampled_from(list(OPERATORS))
)
def test_any_broadcast_agrees_with_numpy(shapes, op) -> None:
    rng = np.random.default_rng(0)
    a, b = (np.asarray(rng.uniform(0.5, 2.0, shape), dtype=np.float32) for shape in shapes.input_shapes)
    ours = OPERATORS[op](Tensor(a, requires_grad=True), Tensor(b))
    assert ours.shape == shapes.result_shape
    assert np.array_equal(ours.numpy(), OPERATORS[op](a, b))


@pytest.mark.unit
def test_shapes_that_do_not_broadcast_are_named(tier) -> None:
    with pytest.raises(ShapeError, match=r"mul: shapes \(2, 3\) and \(4, 1, 2\) do not broadcast: axis -1 .* 3 and 2"):
        random(2, 3) * random(4, 1, 2)


@pytest.mark.unit
def test_bfloat16_is_refused() -> None:
    with pytest.raises(ConfigError, match="add: the second operand is bfloat16"):
        random(3) + Tensor([1.0, 2.0, 3.0], dtype="bfloat16")


@pytest.mark.unit
def test_special_values_follow_ieee(tier) -> None:
    a = np.array([1, -1, 0, np.inf, np.nan, -0.0, 1e38, 1e-42] * 3, dtype=np.float32)
    b = np.array([0, 0, 0, np.inf, 1, 1, 1e38, 1] * 3, dtype=np.float32)
    with np.errstate(all="ignore"):
        for op, function in OPERATORS.items():
            assert function(Tensor(a), Tensor(b)).numpy().tobytes() == function(a, b).tobytes() or np.array_equal(
                function(Tensor(a), Tensor(b)).numpy(), function(a, b), equal_nan=True
            ), op


@pytest.mark.unit
def test_nothing_is_recorded_without_a_gradient() -> None:
    assert (Tensor([1.0]) + 1.0).grad_fn is None
    with autograd.no_grad():
        assert (random(3) * 2.0).grad_fn is None


@pytest.mark.unit
def test_operand_that_was_frozen_when_recorded_gets_no_gradient() -> None:
    for left in (True, False):
        x, frozen = random(3), random(3, requires_grad=False)
        out = frozen * x if left else x * frozen
        frozen.requires_grad = True  # too late for this graph
        out.backward(np.ones(3))
        assert frozen.grad is None
        assert np.array_equal(x.grad.numpy(), frozen.numpy())
