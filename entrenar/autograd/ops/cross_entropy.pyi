import numpy as np
from numpy.typing import NDArray

from entrenar.autograd.quantized import QuantizedTensor
from entrenar.autograd.tensor import Tensor, _ArrayLike

HEAD_CHUNK_BYTES: int
_Targets = NDArray[np.integer] | list[int]

def cross_entropy(
    logits: _ArrayLike, targets: _Targets, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor: ...
def linear_cross_entropy(
    x: _ArrayLike,
    weight: _ArrayLike | QuantizedTensor,
    targets: _Targets,
    ignore_index: int = -100,
    reduction: str = "mean",
    divisor: float | None = None,
    softcap: float | None = None,
    weights: NDArray[np.floating] | None = None,
) -> Tensor: ...
