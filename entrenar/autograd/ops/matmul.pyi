from collections.abc import Sequence

from entrenar.autograd.quantized import QuantizedTensor
from entrenar.autograd.tensor import Tensor, _ArrayLike

def linear_products(x: _ArrayLike, weights: Sequence[Tensor | QuantizedTensor]) -> list[Tensor]: ...
def linear(
    x: _ArrayLike,
    weight: _ArrayLike | QuantizedTensor,
    bias: _ArrayLike | None = None,
    product: Tensor | None = None,
) -> Tensor: ...
def lora_linear(
    x: _ArrayLike,
    weight: _ArrayLike | QuantizedTensor,
    lora_A: _ArrayLike,
    lora_B: _ArrayLike,
    scaling: float,
    dropout: float = 0.0,
    product: Tensor | None = None,
) -> Tensor: ...
def matmul(a: _ArrayLike, b: _ArrayLike) -> Tensor: ...
