"""Weights of every type that a kernel reads, each with the float64 matrix that it stands for. No cases of its own."""

from __future__ import annotations

from functools import cache

import numpy as np

from entrenar.autograd import QuantizedTensor, Tensor
from entrenar.autograd.weight_types import WEIGHT_TYPES, WeightType

from .base import Case

# name -> columns that make whole blocks; nf4 with both of its scales
FROZEN = {row.name: row.block_size for row in WEIGHT_TYPES.values() if row.name != "float32"}
FROZEN |= {f"{row.name} double": row.block_size for row in WEIGHT_TYPES.values() if row.scale_block}
CASES: list[Case] = []


def whole_blocks(weight_type: str, columns: int) -> int:
    """`columns`, or the next number of them that blocks of this type fill."""
    block = WEIGHT_TYPES[weight_type.split()[0]].block_size
    return -(-columns // block) * block


def scales_at(row: WeightType) -> list[int]:
    """The bytes of a block at which its fp16 scales, and minima, begin."""
    one = {"q6_k": [208], "q3_k": [108], "iq4_nl": [0], "iq4_xs": [0], "q4_0": [0], "q5_0": [0], "q8_0": [0]}
    return one.get(row.name, [80, 82] if row.name == "q2_k" else [0, 2])


@cache
def frozen_weight(weight_type: str, rows: int, columns: int) -> tuple[Tensor | QuantizedTensor, np.ndarray]:
    """A weight (rows, columns) that takes no gradient, and its values in float64. Shared: nobody may change it."""
    dense = np.random.default_rng([rows, columns]).standard_normal((rows, columns)).astype(np.float32)
    if weight_type in WEIGHT_TYPES and not WEIGHT_TYPES[weight_type].is_quantized:
        weight = Tensor(dense, dtype=weight_type)
        return weight, np.asarray(weight.numpy(), np.float64)
    name, *double = weight_type.split()
    quantized = QuantizedTensor.quantize(dense, name, double_quantization=bool(double))
    return quantized, quantized.dequantize().astype(np.float64)
