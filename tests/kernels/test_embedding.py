"""Embedding beyond its cases: which rows get a gradient, ids of every type, errors that name the id and its place."""

from __future__ import annotations

import numpy as np
import pytest

from entrenar.autograd import Tensor, embedding
from entrenar.errors import ShapeError

from .cases.weights import FROZEN, frozen_weight, whole_blocks


@pytest.mark.gradient
@pytest.mark.parametrize("hidden", [1, 63, 64, 65, 200])
def test_a_row_gets_the_sum_over_its_uses_and_unused_rows_get_zero(hidden: int, tier: str) -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 600, (3, 130))
    tokens[tokens % 5 == 0] = 7  # one id very often, others never
    table = Tensor(rng.standard_normal((600, hidden)), requires_grad=True)
    upstream = rng.standard_normal((3, 130, hidden)).astype(np.float32)
    expected = np.zeros((600, hidden))
    np.add.at(expected, tokens, upstream.astype(np.float64))
    for turns in (1, 2):  # the second backward adds
        embedding(tokens, table).backward(Tensor(upstream))
        found = table.grad.numpy()
        assert np.linalg.norm(found - turns * expected) < 4e-7 * np.linalg.norm(turns * expected)
        unused = np.setdiff1d(np.arange(600), tokens)
        assert len(unused)
        assert not found[unused].any()


@pytest.mark.gradient
def test_the_row_of_padding_is_read_and_takes_no_gradient() -> None:
    table = Tensor(np.random.default_rng(3).standard_normal((5, 70)), requires_grad=True)
    tokens = np.array([4, 2, 0, 2, 4])
    y = embedding(tokens, table, padding=2)
    np.testing.assert_array_equal(y.numpy(), table.numpy()[tokens])
    y.backward(Tensor(np.ones((5, 70), np.float32)))
    assert table.grad.numpy()[:, 0].tolist() == [1, 0, 0, 0, 2]
    for outside in (-1, 5):
        with pytest.raises(ShapeError, match=f"padding is {outside}, outside the vocabulary of 5"):
            embedding(tokens, table, padding=outside)


@pytest.mark.unit
def test_tokens_of_every_integer_type_and_shape() -> None:
    table = np.random.default_rng(2).standard_normal((9, 5)).astype(np.float32)
    for dtype in (np.int8, np.uint8, np.int16, np.int32, np.uint32, np.int64, np.uint64):
        for shape in ((), (3,), (2, 3), (2, 1, 3)):
            tokens = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
            np.testing.assert_array_equal(embedding(tokens, table).numpy(), table[tokens])
    strided = np.arange(16).reshape(4, 4)[::2, 1:3] % 9
    np.testing.assert_array_equal(embedding(strided, table).numpy(), table[strided])
    np.testing.assert_array_equal(embedding(4, table).numpy(), table[4])


@pytest.mark.unit
@pytest.mark.parametrize("weight_type", FROZEN)
def test_a_frozen_table_gives_its_own_values_and_takes_no_gradient(weight_type: str, tier: str) -> None:
    table, exact = frozen_weight(weight_type, 11, whole_blocks(weight_type, 128))
    y = embedding([[3, 3], [10, 0]], table)
    np.testing.assert_array_equal(y.numpy(), exact[[[3, 3], [10, 0]]])
    assert not y.requires_grad


@pytest.mark.unit
def test_a_token_outside_the_table_is_named_with_its_place() -> None:
    table = np.ones((5, 3), np.float32)
    with pytest.raises(ShapeError, match=r"embedding: tokens\[1, 2\] is 5, outside the vocabulary of 5 entries"):
        embedding([[0, 1, 2], [3, 4, 5]], table)
    with pytest.raises(ShapeError, match=r"tokens\[0\] is -1"):
        embedding([-1], table)
    with pytest.raises(ShapeError, match=r"tokens\[0\] is -1"):
        embedding(np.array([2**64 - 1], np.uint64), table)
    for tokens in ([1.0], [True], ["a"]):
        with pytest.raises(ShapeError, match="tokens must be integers, not"):
            embedding(tokens, table)
    with pytest.raises(ShapeError, match=r"tokens\[0\] is 0, outside the vocabulary of 0"):
        embedding([0], np.ones((0, 3)))
    with pytest.raises(ShapeError, match="weight has shape"):
        embedding([0], np.ones(3))
    with pytest.raises(ShapeError, match="8 axes; at most 7"):
        embedding(np.zeros((1,) * 8, int), table)
