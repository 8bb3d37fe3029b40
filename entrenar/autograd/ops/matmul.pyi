from entrenar.autograd.quantized import QuantizedTensor
from entrenar.autograd.tensor import ArrayLike, Tensor

def linear(x: ArrayLike, weight: ArrayLike | QuantizedTensor, bias: ArrayLike | None = None) -> Tensor: ...
def lora_linear(
    x: ArrayLike,
    weight: ArrayLike | QuantizedTensor,
    lora_A: ArrayLike,
    lora_B: ArrayLike,
    scaling: float,
    dropout: float = 0.0,
) -> Tensor: ...
def matmul(a: ArrayLike, b: ArrayLike) -> Tensor: ...
