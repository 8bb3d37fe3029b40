import numpy as np
from numpy.typing import NDArray

from entrenar.autograd.quantized import QuantizedTensor
from entrenar.autograd.tensor import Tensor, _ArrayLike

def embedding(
    tokens: NDArray[np.integer] | list[int], weight: _ArrayLike | QuantizedTensor, padding: int | None = None
) -> Tensor: ...
