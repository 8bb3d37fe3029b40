"""LoRA's layer: a trained low-rank update on a frozen linear.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv 2106.09685).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from entrenar.adapters.base import Adapter
from entrenar.autograd import LowRankUpdate, Tensor
from entrenar.nn.layers import Linear
from entrenar.nn.module import Weight


class LoRASettings(Protocol):
    """What the layer reads of its configuration."""

    dropout: float

    def scaling_of(self, rank: int, alpha: float) -> float:
        """The factor of an update of this rank and strength."""


class LoRALinear(Adapter):
    """y = x W^T + bias + scaling (dropout(x) A^T) B^T, A (rank, in_features) and B (out_features, rank) trained.

    A starts as kaiming-uniform noise and B as zeros (as PEFT does), so a new adapter changes nothing.
    """

    def __init__(self, base: Linear, rank: int, scaling: float, dropout: float, rng: np.random.Generator) -> None:
        super().__init__(base)
        self.rank, self.scaling, self.dropout = rank, scaling, dropout
        bound = 1.0 / math.sqrt(self.in_features)
        a = rng.uniform(-bound, bound, (rank, self.in_features)).astype(np.float32)
        self.lora_A = Tensor.from_numpy(a, requires_grad=True)
        self.lora_B = Tensor.from_numpy(np.zeros((self.out_features, rank), np.float32), requires_grad=True)

    @classmethod
    def from_base(
        cls, base: Linear, config: LoRASettings, settings: tuple[int, float], rng: np.random.Generator
    ) -> LoRALinear:
        rank, alpha = settings
        return cls(base, rank, config.scaling_of(rank, alpha), config.dropout, rng)

    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        yield "lora_A.weight", self.lora_A
        yield "lora_B.weight", self.lora_B

    def terms(self) -> tuple[Weight, Tensor | None, LowRankUpdate | None]:
        dropout = self.dropout if self.training else 0.0
        return self.weight, self.bias, LowRankUpdate(self.lora_A, self.lora_B, self.scaling, dropout)

    def merged(self) -> Linear:
        """A float32 linear with W + scaling B A."""
        return Linear(Tensor.from_numpy(self.merged_weight()), self.bias)

    def merged_weight(self) -> np.ndarray:
        """W + scaling B A (out_features, in_features) in float32."""
        weight = self.dequantized()
        weight += np.float32(self.scaling) * (self.lora_B.numpy() @ self.lora_A.numpy())
        return weight
