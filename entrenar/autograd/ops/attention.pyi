from numpy.typing import ArrayLike
from typing_extensions import disjoint_base

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

@disjoint_base
class CacheRows:
    def __new__(cls, slots: ArrayLike, positions: ArrayLike) -> CacheRows: ...
    @property
    def count(self) -> int: ...

def write_cache(cache: Tensor, start: int | CacheRows, x: Tensor | ArrayLike) -> None: ...
def cached_attention(
    q: Tensor | ArrayLike,
    key_cache: Tensor | ArrayLike,
    value_cache: Tensor | ArrayLike,
    length: int | CacheRows,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor: ...
