from numpy.typing import ArrayLike

from entrenar.autograd.tensor import Tensor

def rope_table(max_positions: int, inv_freq: ArrayLike, scale: float = 1.0) -> tuple[Tensor, Tensor]: ...
def rope(
    x: Tensor | ArrayLike,
    cos: Tensor | ArrayLike,
    sin: Tensor | ArrayLike,
    positions: ArrayLike | None = None,
    partial: bool = False,
) -> Tensor: ...
