import numpy as np
from numpy.typing import NDArray

from entrenar.autograd.quantized import QuantizedTensor
from entrenar.autograd.tensor import ArrayLike, Tensor

Targets = NDArray[np.integer] | list[int]

def cross_entropy(logits: ArrayLike, targets: Targets, ignore_index: int = -100, reduction: str = "mean") -> Tensor: ...
def linear_cross_entropy(
    x: ArrayLike,
    weight: ArrayLike | QuantizedTensor,
    targets: Targets,
    ignore_index: int = -100,
    reduction: str = "mean",
    divisor: float | None = None,
) -> Tensor: ...
