from typing import Any

from entrenar.autograd.tensor import Tensor

def dropout(x: Any, p: float = 0.5, training: bool = True) -> Tensor: ...
