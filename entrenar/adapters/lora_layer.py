"""LoRA layers: a frozen linear plus a trained low-rank update.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv 2106.09685).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from entrenar.autograd import Tensor, lora_linear
from entrenar.autograd.ops.matmul import Product
from entrenar.autograd.quantized import QuantizedTensor
from entrenar.nn.layers import Linear
from entrenar.nn.module import Weight


class LoRALinear(Linear):
    """y = x W^T + scaling (dropout(x) A^T) B^T with W frozen, A (rank, in_features) and B (out_features, rank).

    A starts as kaiming-uniform noise and B as zeros (as PEFT does), so a new adapter changes nothing.
    """

    def __init__(self, base: Linear, rank: int, scaling: float, dropout: float, rng: np.random.Generator) -> None:
        super().__init__(base.weight)
        if isinstance(base.weight, Tensor):
            base.weight.requires_grad = False
        self.rank, self.scaling, self.dropout = rank, scaling, dropout
        self.training = True
        bound = 1.0 / math.sqrt(self.in_features)
        a = rng.uniform(-bound, bound, (rank, self.in_features)).astype(np.float32)
        self.lora_A = Tensor.from_numpy(a, requires_grad=True)
        self.lora_B = Tensor.from_numpy(np.zeros((self.out_features, rank), np.float32), requires_grad=True)

    def own_weights(self) -> Iterator[tuple[str, Weight]]:
        """The base weight under its own name, and the adapter's under PEFT's."""
        yield "weight", self.weight
        yield "lora_A.weight", self.lora_A
        yield "lora_B.weight", self.lora_B

    def __call__(self, x: Tensor, product: Product | None = None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return lora_linear(x, self.weight, self.lora_A, self.lora_B, self.scaling, dropout, product)

    def merged(self) -> Linear:
        """A float32 linear with W + scaling B A; a W in codes or bfloat16 is dequantized for it."""
        base = self.weight.dequantize() if isinstance(self.weight, QuantizedTensor) else self.weight.numpy()
        weight = base.astype(np.float32)
        weight += np.float32(self.scaling) * (self.lora_B.numpy() @ self.lora_A.numpy())
        return Linear(Tensor.from_numpy(weight))
