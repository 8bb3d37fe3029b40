"""quantize_linears: the linears of a module tree's decoder layers in a weight type, in place, whatever the model is."""

from __future__ import annotations

import numpy as np
import pytest

from entrenar.autograd import QuantizedTensor, Tensor
from entrenar.errors import QuantizationError
from entrenar.nn.layers import Linear, RMSNorm
from entrenar.nn.module import Module, Weight
from entrenar.nn.quantize import quantize_linears


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal((rows, columns), np.float32))


class Layer(Module):
    """Two linears, the second of rows that no block of 64 divides, and a norm."""

    def __init__(self, weight: Weight) -> None:
        self.norm = RMSNorm(Tensor(np.ones(64, np.float32)), 1e-5)
        self.wide, self.narrow = Linear(weight), Linear(matrix(64, 96))


class Tree(Module):
    """Layers between an input and an output, which are linears too."""

    def __init__(self, *weights: Weight) -> None:
        self.below = Linear(matrix(64, 64))
        self.body = Body(*weights)
        self.above = Linear(matrix(8, 64))


class Body(Module):
    def __init__(self, *weights: Weight) -> None:
        self.layers = [Layer(weight) for weight in weights]


@pytest.mark.unit
@pytest.mark.parametrize("double", [True, False])
def test_the_linears_of_layers_are_quantized_in_place_and_nothing_else(double: bool) -> None:
    weights = [matrix(128, 64, 1), matrix(128, 64, 2)]
    tree = Tree(*weights)
    left = quantize_linears(tree, "nf4", double)
    assert left == {f"body.layers.{i}.narrow.weight": "its 96 columns are no multiple of 64" for i in range(2)}
    for layer, weight in zip(tree.body.layers, weights, strict=True):
        expected = QuantizedTensor.quantize(weight, "nf4", double_quantization=double)
        assert isinstance(layer.wide.weight, QuantizedTensor)
        assert layer.wide.weight.double_quantized == double
        np.testing.assert_array_equal(layer.wide.weight.dequantize(), expected.dequantize())
        assert isinstance(layer.narrow.weight, Tensor) and isinstance(layer.norm.weight, Tensor)
    assert isinstance(tree.below.weight, Tensor) and isinstance(tree.above.weight, Tensor)
    assert quantize_linears(tree, "int4", True) == {}  # blocks of 32 fit; what is 4-bit stays
    assert [layer.wide.weight.dtype for layer in tree.body.layers] == ["nf4", "nf4"]
    assert [layer.narrow.weight.dtype for layer in tree.body.layers] == ["q4_1", "q4_1"]


@pytest.mark.unit
@pytest.mark.parametrize("stored", ["int16", "q4_0"])
def test_quantized_weights_of_more_bits_are_requantized_and_those_of_4_bits_stay(stored: str) -> None:
    weight = QuantizedTensor.quantize(matrix(128, 64), stored)
    tree = Tree(weight)
    quantize_linears(tree, "nf4", True)
    found = tree.body.layers[0].wide.weight
    if stored == "q4_0":
        assert found is weight
    else:
        assert found.dtype == "nf4"
        expected = QuantizedTensor.quantize(weight.dequantize(), "nf4")
        np.testing.assert_array_equal(found.dequantize(), expected.dequantize())


@pytest.mark.unit
def test_a_weight_that_cannot_be_represented_is_named() -> None:
    weight = matrix(128, 64)
    weight.numpy()[3, 5] = np.inf
    with pytest.raises(QuantizationError, match=r"^body\.layers\.0\.wide\.weight cannot become nf4: .*row 3, column 5"):
        quantize_linears(Tree(weight), "nf4", True)
