from collections.abc import Sequence

from typing_extensions import disjoint_base

from entrenar.autograd.quantized import QuantizedTensor
from entrenar.autograd.tensor import Tensor, _ArrayLike

@disjoint_base
class LowRankUpdate:
    def __new__(cls, lora_A: _ArrayLike, lora_B: _ArrayLike, scaling: float, dropout: float = 0.0) -> LowRankUpdate: ...
    @property
    def lora_A(self) -> Tensor: ...
    @property
    def lora_B(self) -> Tensor: ...
    @property
    def scaling(self) -> float: ...
    @property
    def dropout(self) -> float: ...

def linear(x: _ArrayLike, weight: _ArrayLike | QuantizedTensor, bias: _ArrayLike | None = None) -> Tensor: ...
def grouped_linear(
    x: _ArrayLike,
    weights: Sequence[_ArrayLike | QuantizedTensor],
    biases: Sequence[_ArrayLike | None] | None = None,
    updates: Sequence[LowRankUpdate | None] | None = None,
) -> list[Tensor]: ...
def lora_linear(
    x: _ArrayLike,
    weight: _ArrayLike | QuantizedTensor,
    lora_A: _ArrayLike,
    lora_B: _ArrayLike,
    scaling: float,
    dropout: float = 0.0,
    bias: _ArrayLike | None = None,
) -> Tensor: ...
def matmul(a: _ArrayLike, b: _ArrayLike) -> Tensor: ...
