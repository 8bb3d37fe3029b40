"""LoRA's layer: a trained low-rank update on a frozen linear.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv 2106.09685).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from entrenar.adapters.base import Adapter
from entrenar.adapters.lora_init import Start, default_a
from entrenar.adapters.lora_init import start as first_values
from entrenar.autograd import LowRankUpdate, Tensor
from entrenar.nn.layers import Linear
from entrenar.nn.module import Weight


class LoRASettings(Protocol):
    """What the layer reads of its configuration."""

    dropout: float
    init_lora_weights: bool | str
    loftq_iter: int

    def scaling_of(self, rank: int, alpha: float) -> float:
        """The factor of an update of this rank and strength."""


class LoRALinear(Adapter):
    """y = x W^T + bias + scaling (dropout(x) A^T) B^T, A (rank, in_features) and B (out_features, rank) trained.

    A starts as kaiming-uniform noise and B as zeros (as PEFT does), so a new adapter changes nothing; `start` says
    otherwise. Where that took a part of the base (PiSSA), `initial` keeps A and B as they were then.
    """

    def __init__(
        self,
        base: Linear,
        rank: int,
        scaling: float,
        dropout: float,
        rng: np.random.Generator,
        start: Start | None = None,
    ) -> None:
        super().__init__(base)
        self.rank, self.scaling, self.dropout = rank, scaling, dropout
        if start is None:
            start = Start(default_a(rank, self.in_features, rng), np.zeros((self.out_features, rank), np.float32))
        if start.weight is not None:
            self.weight = start.weight
        self.initial = (start.a.copy(), start.b.copy()) if start.takes_from_base else None
        self.lora_A = Tensor.from_numpy(start.a, requires_grad=True)
        self.lora_B = Tensor.from_numpy(start.b, requires_grad=True)

    @classmethod
    def from_base(
        cls,
        base: Linear,
        config: LoRASettings,
        settings: tuple[int, float],
        rng: np.random.Generator,
        original: Callable[[], np.ndarray | None],
    ) -> LoRALinear:
        rank, alpha = settings
        scaling = config.scaling_of(rank, alpha)
        first = first_values(
            config.init_lora_weights,
            base.weight,
            rank,
            scaling,
            rng,
            original=original,
            iterations=config.loftq_iter,
        )
        return cls(base, rank, scaling, config.dropout, rng, first)

    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        yield "lora_A.weight", self.lora_A
        yield "lora_B.weight", self.lora_B

    def saved_weights(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, values) of the update of the base as it was: where A and B took a part of it, [A; A0] and [B, -B0]."""
        for name, weight in self.adapter_weights():
            values = weight.numpy()
            if self.initial is not None and weight is self.lora_A:
                values = np.concatenate([values, self.initial[0]])
            elif self.initial is not None and weight is self.lora_B:
                values = np.concatenate([values, -self.initial[1]], axis=1)
            yield name, values

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
