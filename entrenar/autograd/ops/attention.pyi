from numpy.typing import ArrayLike

from entrenar.autograd.tensor import Tensor

def attention(
    q: Tensor | ArrayLike,
    k: Tensor | ArrayLike,
    v: Tensor | ArrayLike,
    cu_seqlens: ArrayLike | None = None,
    scale: float | None = None,
    causal: bool = True,
    cu_seqlens_k: ArrayLike | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor: ...
def write_cache(
    cache: Tensor, start: int | ArrayLike, x: Tensor | ArrayLike, slots: ArrayLike | None = None
) -> None: ...
def cached_attention(
    q: Tensor | ArrayLike,
    key_cache: Tensor | ArrayLike,
    value_cache: Tensor | ArrayLike,
    length: int | ArrayLike,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    slots: ArrayLike | None = None,
) -> Tensor: ...
