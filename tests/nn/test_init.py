"""Initial weights: what each name draws."""

from __future__ import annotations

import numpy as np
import pytest

from entrenar.nn.init import random_weights

pytestmark = pytest.mark.unit


def test_matrices_are_normal_norms_one_and_biases_zero() -> None:
    draw = random_weights(3, 0.02)
    matrix = draw("a.weight", (200, 300)).numpy()
    assert abs(matrix.std() / 0.02 - 1) < 0.02 and abs(matrix.mean()) < 1e-3
    np.testing.assert_array_equal(draw("norm.weight", (5,)).numpy(), np.ones(5))
    np.testing.assert_array_equal(draw("a.bias", (5,)).numpy(), np.zeros(5))


def test_each_name_and_seed_has_its_own_stream() -> None:
    first = random_weights(3, 1.0)("a.weight", (4, 4)).numpy()
    np.testing.assert_array_equal(first, random_weights(3, 1.0)("a.weight", (4, 4)).numpy())
    assert not np.array_equal(first, random_weights(3, 1.0)("b.weight", (4, 4)).numpy())
    assert not np.array_equal(first, random_weights(4, 1.0)("a.weight", (4, 4)).numpy())
