"""What the cases of reshape, transpose, slice and concatenate cannot say: memory, errors, any index."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from entrenar import autograd
from entrenar.autograd import Tensor
from entrenar.errors import ShapeError


def counted(*shape: int, requires_grad: bool = False) -> Tensor:
    return Tensor(np.arange(np.prod(shape, dtype=int)).reshape(shape), requires_grad=requires_grad)


@pytest.mark.memory
def test_reshape_shares_memory_and_the_others_copy() -> None:
    x = counted(4, 6)
    x.reshape(3, -1).numpy()[0, 0] = 99
    assert x.numpy()[0, 0] == 99
    for copy in (x.T, x[1:], autograd.concatenate([x])):
        copy.numpy()[...] = -1
    assert x.numpy().min() == 1


@pytest.mark.unit
@pytest.mark.property
@settings(max_examples=100, deadline=None)
@given(data=st.data(), shape=hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=6))
def test_any_basic_index_agrees_with_numpy(data, shape) -> None:
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True, max_dims=7))
    x = counted(*shape, requires_grad=True)
    out = x[index]
    expected = np.asarray(x.numpy()[index])
    assert out.shape == expected.shape
    assert np.array_equal(out.numpy(), expected)
    gradient = np.random.default_rng(0).standard_normal(expected.shape).astype(np.float32)
    out.backward(gradient)
    scattered = np.zeros(shape, np.float32)
    scattered[index] = gradient
    assert np.array_equal(x.grad.numpy(), scattered)


@pytest.mark.unit
@pytest.mark.property
@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=hnp.array_shapes(min_dims=1, max_dims=5, max_side=9))
def test_any_transposition_agrees_with_numpy(data, shape) -> None:
    axes = data.draw(st.permutations(range(len(shape))))
    x = counted(*shape, requires_grad=True)
    out = autograd.transpose(x, axes)
    assert np.array_equal(out.numpy(), x.numpy().transpose(axes))
    (out * 1.0).backward(out.numpy() + 1)
    assert np.array_equal(x.grad.numpy(), x.numpy() + 1)


@pytest.mark.gradient
def test_gradients_of_several_uses_add_up(tier) -> None:
    x = counted(40, 70, requires_grad=True)
    out = x.T * 2.0 + x.T.reshape(40, 70).reshape(70, 40)
    (out.sum() + x[3:20, ::2].sum() + autograd.concatenate([x, x], 1).sum()).backward()
    expected = np.full((40, 70), 5.0)
    expected[3:20, ::2] += 1
    assert np.array_equal(x.grad.numpy(), expected)


@pytest.mark.unit
def test_iteration_ends() -> None:
    assert [row.tolist() for row in counted(2, 3)] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.unit
def test_errors_name_both_shapes() -> None:
    x = counted(2, 3)
    with pytest.raises(ShapeError, match=r"reshape: shape \(2, 3\) has 6 elements, which do not fit shape \(4, -1\)"):
        x.reshape(4, -1)
    with pytest.raises(ShapeError, match="more than one -1"):
        x.reshape(-1, -1)
    with pytest.raises(ShapeError, match=r"\(0, -1\)"):
        counted(0, 3).reshape(0, -1)
    with pytest.raises(ShapeError, match="no permutation"):
        autograd.transpose(x, (0, 0))
    with pytest.raises(ShapeError, match=r"transpose: axis 2 lies outside shape \(2, 3\)"):
        autograd.transpose(x, (0, 2))
    with pytest.raises(ShapeError, match=r"slice: index 2 lies outside axis 0 of shape \(2, 3\)"):
        x[2]
    with pytest.raises(ShapeError, match="too many indices"):
        x[0, 0, 0]
    with pytest.raises(ShapeError, match="an index is an integer, a slice"):
        x[[0, 1]]
    with pytest.raises(ShapeError, match="an index is an integer, a slice"):
        x[True]
    with pytest.raises(ShapeError, match=r"tensor 1 has shape \(2, 4\), which does not fit \(2, 3\) of tensor 0"):
        autograd.concatenate([x, counted(2, 4)])
    with pytest.raises(ShapeError, match="no tensors"):
        autograd.concatenate([])
