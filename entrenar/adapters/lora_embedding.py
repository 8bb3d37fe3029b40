"""LoRA on an embedding: a trained low-rank update of the rows that are looked up."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from entrenar.autograd import Tensor, embedding, linear
from entrenar.autograd.quantized import QuantizedTensor
from entrenar.nn.layers import Embedding

PARTS = ("lora_embedding_A", "lora_embedding_B")


class LoRAEmbedding(Embedding):
    """y = W[tokens] + scaling A^T[tokens] B^T, A (rank, vocabulary) and B (hidden, rank) trained, as in PEFT.

    A starts as zeros and B as normal noise, so a new adapter changes nothing. There is no dropout. A scale that the
    embedding has acts on both.
    """

    def __init__(self, base: Embedding, rank: int, scaling: float, rng: np.random.Generator) -> None:
        super().__init__(base.weight, base.padding, base.scale)
        vocabulary, hidden = base.weight.shape
        self.rank, self.scaling = rank, scaling
        self.lora_embedding_A = Tensor.from_numpy(np.zeros((rank, vocabulary), np.float32), requires_grad=True)
        b = rng.standard_normal((hidden, rank)).astype(np.float32)
        self.lora_embedding_B = Tensor.from_numpy(b, requires_grad=True)

    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        """(name, weight) of the trained weights, named and shaped as in PEFT's files."""
        yield PARTS[0], self.lora_embedding_A
        yield PARTS[1], self.lora_embedding_B

    def __call__(self, tokens: np.ndarray) -> Tensor:
        rows = embedding(tokens, self.lora_embedding_A.transpose(), self.padding)
        update = linear(rows, self.lora_embedding_B) * (self.scaling * (1.0 if self.scale is None else self.scale))
        return super().__call__(tokens) + update

    def merged(self) -> Embedding:
        """A float32 embedding with W + scaling (B A)^T."""
        weight = self.weight.dequantize() if isinstance(self.weight, QuantizedTensor) else self.weight.numpy()
        weight = weight.astype(np.float32)
        weight += np.float32(self.scaling) * (self.lora_embedding_B.numpy() @ self.lora_embedding_A.numpy()).T
        return Embedding(Tensor.from_numpy(weight), self.padding, self.scale)
