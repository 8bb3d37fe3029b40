"""Skinny products: lora_linear's value and gradients over every weight type."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from entrenar import autograd
from entrenar.autograd import QuantizedTensor, Tensor, random

from .cases.dropout import SEED, STEP, mask
from .cases.weights import FROZEN, frozen_weight, whole_blocks
from .products import exact, normal, relative_error, three_products


def lora_gradients(
    x: np.ndarray, w: np.ndarray, a: np.ndarray, b: np.ndarray, dy: np.ndarray, scaling: float, kept: np.ndarray
) -> list[np.ndarray]:
    """y, dx, dA, dB and dW in float64; `kept` is the mask over 1 - p."""
    x, w, a, b, dy = exact(x, w, a, b, dy)
    dropped, g = x * kept, scaling * dy @ b
    return [
        x @ w.T + scaling * dropped @ a.T @ b.T,
        dy @ w + kept * (g @ a),
        g.T @ dropped,
        scaling * dy.T @ (dropped @ a.T),
        dy.T @ x,
    ]


@pytest.mark.gradient
@pytest.mark.parametrize("weight_type", ["float32", *FROZEN])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
@pytest.mark.parametrize("m", [1, 4, 45])
def test_lora_value_and_gradients_agree_with_float64(weight_type: str, dropout: float, m: int, tier: str) -> None:
    n, k, rank, scaling = 67, whole_blocks(weight_type, 448), 12, 1.5
    x, w, a, b, dy = normal(8, (m, k), (n, k), (rank, k), (n, rank), (m, n))
    weight: Tensor | QuantizedTensor = Tensor(w, requires_grad=True)
    if weight_type != "float32":
        weight, w = frozen_weight(weight_type, n, k)
    kept = mask(m * k, dropout, SEED, STEP, 0).reshape(m, k) / (1 - dropout)
    tensors = [Tensor(array, requires_grad=True) for array in (x, a, b)]
    for turns in (1, 2):  # the second backward adds
        random.manual_seed(SEED)
        random.set_step(STEP)
        y = autograd.lora_linear(tensors[0], weight, *tensors[1:], scaling, dropout)
        y.backward(Tensor(dy))
        expected = lora_gradients(x, w, a, b, dy, scaling, kept)
        found = [y.numpy()] + [tensor.grad.numpy() / turns for tensor in tensors]
        found += [weight.grad.numpy() / turns] if weight_type == "float32" else []
        for name, one, two in zip(("y", "dx", "dA", "dB", "dW"), found, expected, strict=False):
            assert relative_error(one, two) < 8e-7, name


@pytest.mark.gradient
@pytest.mark.parametrize("trained", [*itertools.combinations(range(3), 1), (0, 2), (1, 2)], ids=str)
def test_lora_gives_a_gradient_to_what_wants_one_only(trained: tuple[int, ...]) -> None:
    arrays = normal(9, (5, 64), (3, 64), (7, 3))
    weight, values = frozen_weight("nf4", 7, 64)
    dy = normal(10, (5, 7))[0]
    tensors = [Tensor(array, requires_grad=i in trained) for i, array in enumerate(arrays)]
    autograd.lora_linear(tensors[0], weight, *tensors[1:], 2.0).backward(Tensor(dy))
    assert tuple(i for i, tensor in enumerate(tensors) if tensor.grad is not None) == trained
    expected = lora_gradients(arrays[0], values, *arrays[1:], dy, 2.0, np.ones((5, 64)))[1:4]
    for i in trained:
        assert relative_error(tensors[i].grad.numpy(), expected[i]) < 5e-7


@pytest.mark.unit
def test_lora_with_a_zero_b_has_the_bits_of_its_base() -> None:
    weight, _ = frozen_weight("q4_1", 33, 64)
    x, a = normal(11, (9, 64), (4, 64))
    y = autograd.lora_linear(x, weight, a, np.zeros((33, 4)), 2.0)
    np.testing.assert_array_equal(y.numpy(), autograd.linear(x, weight).numpy())


@pytest.mark.unit
def test_a_rank_of_zero_is_the_base_alone() -> None:
    x, w, dy = normal(15, (3, 5), (4, 5), (3, 4))
    tensor = Tensor(x, requires_grad=True)
    y = autograd.lora_linear(tensor, w, np.ones((0, 5)), np.ones((4, 0)), 1.0)
    y.backward(Tensor(dy))
    expected = three_products(x, w, dy)
    np.testing.assert_array_equal(y.numpy(), expected[0])
    np.testing.assert_array_equal(tensor.grad.numpy(), expected[1])
