from collections.abc import Sequence

from typing_extensions import disjoint_base

from entrenar.autograd.quantized import QuantizedTensor
from entrenar.autograd.tensor import Tensor, _ArrayLike

@disjoint_base
class Product: ...

def linear_products(x: Tensor, weights: Sequence[Tensor | QuantizedTensor]) -> list[Product]: ...
def unread_product(x: Tensor, weight: Tensor | QuantizedTensor) -> Product: ...
def linear(
    x: _ArrayLike,
    weight: _ArrayLike | QuantizedTensor,
    bias: _ArrayLike | None = None,
    product: Product | None = None,
) -> Tensor: ...
def lora_linear(
    x: _ArrayLike,
    weight: _ArrayLike | QuantizedTensor,
    lora_A: _ArrayLike,
    lora_B: _ArrayLike,
    scaling: float,
    dropout: float = 0.0,
    product: Product | None = None,
) -> Tensor: ...
def matmul(a: _ArrayLike, b: _ArrayLike) -> Tensor: ...
