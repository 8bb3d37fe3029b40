"""DoRA's layer: LoRA whose rows are brought to trained norms.

Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024 (arXiv 2402.09353).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from entrenar.adapters.lora_init import Start
from entrenar.adapters.lora_linear import LoRALinear
from entrenar.autograd import LowRankUpdate, Tensor, dropout, linear, matmul, no_grad
from entrenar.nn.layers import Linear
from entrenar.nn.module import Weight

CHUNK = 1 << 20  # values of W that are in full precision at once


class DoRALinear(LoRALinear):
    """y = m / |V| * (x V^T) + bias, V = W + scaling B A, with m (out_features,) trained and |V| the norms of V's rows.

    The norms take no gradient (section 4.3 of the paper). m starts as they are, so a new adapter changes nothing. With
    dropout, x' = dropout(x): y = (x - x') W^T + m / |V| * (x' V^T) + bias, as in PEFT.
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
        super().__init__(base, rank, scaling, dropout, rng, start)
        self._squares = _squared_norms(self.weight)
        self._norms_of: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # A, B and the norms that they gave
        self.magnitude = Tensor.from_numpy(self.norms().copy(), requires_grad=True)

    def adapter_weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from super().adapter_weights()
        yield "lora_magnitude_vector", self.magnitude

    def norms(self) -> np.ndarray:
        """The norm (out_features,) of every row of W + scaling B A, float32; W is dequantized a chunk at a time.

        |w + s b A|^2 = |w|^2 + 2 s b . (A w) + s^2 b (A A^T) b, w and b being rows of W and B.
        """
        a, b = self.lora_A.numpy(), self.lora_B.numpy()
        known = self._norms_of
        if known is not None and np.array_equal(known[0], a) and np.array_equal(known[1], b):
            return known[2]
        with no_grad():
            transposed = self.lora_A.transpose()
            products = np.concatenate([matmul(rows, transposed).numpy() for rows in _chunks(self.weight)])  # W A^T
            own = matmul(self.lora_B, matmul(self.lora_A, transposed)).numpy()  # B A A^T
        cross = np.einsum("ir,ir->i", b, products, dtype=np.float64)
        squares = self._squares + 2 * self.scaling * cross
        squares += self.scaling**2 * np.einsum("ir,ir->i", b, own, dtype=np.float64)
        norms = np.sqrt(np.maximum(squares, np.finfo(np.float32).tiny)).astype(np.float32)
        self._norms_of = a.copy(), b.copy(), norms
        return norms

    def prepare(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout) if self.training and self.dropout else x

    def terms(self) -> tuple[Weight, Tensor | None, LowRankUpdate | None]:
        return self.weight, None, LowRankUpdate(self.lora_A, self.lora_B, self.scaling, 0.0)

    def finish(self, y: Tensor, x: Tensor, prepared: Tensor) -> Tensor:
        y = y * (self.magnitude / Tensor.from_numpy(self.norms()))
        if prepared is not x:
            return y + linear(x - prepared, self.weight, self.bias)
        return y if self.bias is None else y + self.bias

    def merged(self) -> Linear:
        """A float32 linear with the rows of W + scaling B A at their norms."""
        weight = self.merged_weight()
        weight *= (self.magnitude.numpy() / self.norms())[:, None]
        return Linear(Tensor.from_numpy(weight), self.bias)


def _chunks(weight: Weight) -> Iterator[Tensor]:
    """The rows of W in float32, CHUNK values at a time."""
    rows, columns = weight.shape
    step = max(1, CHUNK // columns)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        if isinstance(weight, Tensor):
            yield Tensor.from_numpy(weight.numpy()[start:stop].astype(np.float32))
        else:
            yield Tensor.from_numpy(weight.dequantize_rows(start, stop))


def _squared_norms(weight: Weight) -> np.ndarray:
    """|w|^2 of every row w, float64."""
    return np.concatenate([np.square(rows.numpy(), dtype=np.float64).sum(axis=1) for rows in _chunks(weight)])
