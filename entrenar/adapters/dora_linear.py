"""DoRA's layer: LoRA whose rows are brought to trained norms.

Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024 (arXiv 2402.09353).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from entrenar.adapters.lora_init import Start
from entrenar.adapters.lora_linear import LoRALinear
from entrenar.autograd import LowRankUpdate, Tensor, dropout, linear, no_grad
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
        """The norm (out_features,) of every row of W + scaling B A, float32; W is read in its own weight type.

        |w + s b A|^2 = |w|^2 + 2 s b . (A w) + s^2 b (A A^T) b: no row of W in full precision, but for A W^T.
        """
        a, b = self.lora_A.numpy(), self.lora_B.numpy()
        known = self._norms_of
        if known is not None and np.array_equal(known[0], a) and np.array_equal(known[1], b):
            return known[2]
        with no_grad():
            products = linear(self.lora_A, self.weight).numpy()  # (rank, out_features)
            rows = linear(self.lora_B, linear(self.lora_A, self.lora_A)).numpy()  # B A A^T
        cross = np.einsum("ir,ri->i", b, products, dtype=np.float64)
        own = np.einsum("ir,ir->i", b, rows, dtype=np.float64)
        squares = self._squares + 2 * self.scaling * cross + self.scaling**2 * own
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


def _squared_norms(weight: Weight) -> np.ndarray:
    """|w|^2 of every row w, float64, a chunk of rows at a time."""
    rows, columns = weight.shape
    step, found = max(1, CHUNK // columns), np.empty(rows)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        if isinstance(weight, Tensor):
            values = weight.numpy()[start:stop].astype(np.float32)
        else:
            values = weight.dequantize_rows(start, stop)
        found[start:stop] = np.square(values, dtype=np.float64).sum(axis=1)
    return found
