"""Cases of attention and cached_attention, and the float64 reference that attention's other tests use too."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from entrenar.autograd.ops.attention import attention, cached_attention

from .base import Case, normal

Shape = tuple[int, int, int, int, int]  # batch, length, heads, kv heads, head size


def reference_attention(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    cu_seqlens: Sequence[int] | None = None,
    scale: float | None = None,
    causal: bool = True,
    cu_seqlens_k: Sequence[int] | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> np.ndarray:
    """The textbook formula, one head of one sequence at a time, with the whole probability matrix."""
    (batch, length, heads, dim), (keys, kv_heads) = q.shape, k.shape[1:3]
    scale = dim**-0.5 if scale is None else scale
    if cu_seqlens is None:
        runs = [(b * length, (b + 1) * length, b * keys, (b + 1) * keys) for b in range(batch)]
    else:
        ends = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
        runs = [(*of_q, *of_k) for of_q, of_k in zip(*map(itertools.pairwise, (cu_seqlens, ends)), strict=True)]
    q2, k2, v2 = q.reshape(-1, heads, dim), k.reshape(-1, kv_heads, dim), v.reshape(-1, kv_heads, dim)
    out = np.zeros_like(q2)
    for q_start, q_end, k_start, k_end in runs:
        if q_start == q_end:
            continue
        visible = np.ones((q_end - q_start, k_end - k_start), bool)
        if causal:
            visible = np.tril(visible, k_end - k_start - (q_end - q_start))
        if window is not None:
            visible &= ~np.tril(np.ones_like(visible), k_end - k_start - (q_end - q_start) - window)
        for h in range(heads):
            kv = h // (heads // kv_heads)
            scores = scale * q2[q_start:q_end, h] @ k2[k_start:k_end, kv].T
            if softcap is not None:
                scores = softcap * np.tanh(scores / softcap)
            scores = np.where(visible, scores, -np.inf)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out[q_start:q_end, h] = p / p.sum(-1, keepdims=True) @ v2[k_start:k_end, kv]
    return out.reshape(q.shape)


def qkv(shape: Shape, keys: int | None = None) -> Callable[[np.random.Generator], list[np.ndarray]]:
    """Standard normal q, k and v; `keys` is the length of k and v where it differs."""
    batch, length, heads, kv_heads, dim = shape
    kv = (batch, length if keys is None else keys, kv_heads, dim)
    return normal((batch, length, heads, dim), kv, kv)


def case(
    label: str,
    shape: Shape,
    keys: int | None = None,
    gradient: bool = True,
    differentiable: tuple[int, ...] | None = None,
    **options: object,
) -> Case:
    return Case(
        op="attention",
        label=f"{label} {'x'.join(map(str, shape))}",
        inputs=qkv(shape, keys),
        run=lambda q, k, v: attention(q, k, v, **options),
        reference=lambda q, k, v: reference_attention(q, k, v, **options),
        tolerance=5e-7,
        gradient=gradient,
        differentiable=differentiable,
    )


def cached_case(
    label: str, shape: Shape, capacity: int, length: int, tolerance: float = 5e-7, **options: object
) -> Case:
    return Case(
        op="cached_attention",
        label=f"{label} {'x'.join(map(str, shape))} {length} of {capacity}",
        inputs=qkv(shape, capacity),
        run=lambda q, k, v: cached_attention(q, k, v, length, **options),
        reference=lambda q, k, v: reference_attention(q, k[:, :length], v[:, :length], **options),
        tolerance=tolerance,
        gradient=False,
        differentiable=(),
    )


def zeros(rng: np.random.Generator) -> list[np.ndarray]:
    q, k, v = qkv((1, 5, 2, 1, 4))(rng)
    return [0 * q, 0 * k, v]


# a tile is 64 rows (query heads of a kv head times tokens) by 64 keys
CASES = [
    # its gradients of q and k are zero, of which a relative error says nothing
    case("one token", (1, 1, 1, 1, 16), differentiable=(2,)),
    case("tiny", (2, 5, 1, 1, 3)),
    case("equal heads", (1, 7, 3, 3, 6)),
    case("grouped", (2, 5, 4, 2, 6)),
    case("one kv head", (1, 7, 8, 1, 4)),
    case("odd head size", (1, 7, 3, 1, 20)),
    case("scale", (1, 6, 2, 1, 5), scale=0.3),
    case("bidirectional", (1, 6, 2, 1, 5), causal=False),
    case("more keys", (2, 3, 2, 1, 5), keys=8),
    case("more keys, bidirectional", (1, 3, 2, 1, 5), keys=8, causal=False),
    case("packed", (2, 6, 2, 1, 5), cu_seqlens=(0, 0, 1, 5, 5, 11, 12)),
    case("packed behind a prefix", (1, 9, 4, 2, 5), keys=15, cu_seqlens=(0, 4, 4, 9), cu_seqlens_k=(0, 6, 8, 15)),
    Case(
        op="attention",
        label="zero queries and keys average the values",
        inputs=zeros,
        run=lambda q, k, v: attention(q, k, v),
        reference=lambda q, k, v: v.cumsum(1).repeat(2, 2) / np.arange(1, 6).reshape(1, 5, 1, 1),
        tolerance=2e-7,
    ),
    *[case("lengths", (1, length, 3, 1, 48), gradient=False) for length in (64, 65, 130)],
    *[case("head sizes", (1, 70, 6, 2, dim), gradient=False) for dim in (16, 48, 64, 80, 128, 20, 5)],
    *[case("heads", (1, 130, heads, kv, 16), gradient=False) for heads, kv in ((1, 1), (3, 3), (8, 8), (8, 1), (9, 3))],
    case("large, rows split", (1, 700, 9, 3, 64), gradient=False),
    case("large, batch", (3, 260, 4, 4, 40), gradient=False),
    case("large, packed", (1, 600, 3, 1, 32), gradient=False, cu_seqlens=(0, 300, 300, 301, 470, 600)),
    case(
        "large, packed behind a prefix",
        (1, 600, 3, 1, 32),
        keys=640,
        gradient=False,
        cu_seqlens=(0, 300, 301, 600),
        cu_seqlens_k=(0, 310, 321, 640),
    ),
    # where there are 64 pieces and more, 2 to 4 blocks of rows share a copied tile of keys
    case("blocks together", (1, 1100, 8, 8, 16), gradient=False),
    case("blocks together, packed", (1, 600, 8, 8, 16), gradient=False, cu_seqlens=(0, 300, 300, 301, 470, 600)),
    case("blocks together, bidirectional", (2, 520, 8, 8, 16), gradient=False, causal=False),
    case("blocks together, more keys", (1, 1000, 8, 8, 16), gradient=False, keys=1100),
    case("large, bidirectional", (1, 300, 8, 1, 32), gradient=False, causal=False),
    case("window of one", (1, 5, 2, 1, 4), window=1, differentiable=(2,)),
    case("window", (2, 9, 4, 2, 6), window=3),
    case("window as long as the keys", (1, 7, 2, 1, 5), window=7),
    case("window, more keys", (2, 5, 2, 1, 5), keys=11, window=4),
    case("window, packed", (2, 6, 2, 1, 5), window=3, cu_seqlens=(0, 0, 1, 5, 5, 11, 12)),
    case("softcap", (1, 7, 4, 2, 6), softcap=0.7),
    case("softcap, bidirectional", (1, 6, 2, 1, 5), causal=False, softcap=1.5),
    case("window, softcap, scale", (1, 9, 4, 2, 6), window=4, softcap=0.9, scale=1.3),
    *[case("window lengths", (1, 300, 3, 1, 16), gradient=False, window=window) for window in (1, 2, 63, 64, 65, 299)],
    case("window, rows split", (1, 700, 9, 3, 32), gradient=False, window=100, softcap=2.0),
    case("window, blocks together", (1, 1100, 8, 8, 16), gradient=False, window=130),
    case("window of one, blocks together", (1, 1100, 8, 8, 16), gradient=False, window=1),
    case(
        "window, large, packed", (1, 600, 8, 8, 16), gradient=False, window=70, cu_seqlens=(0, 300, 300, 301, 470, 600)
    ),
    case("window, large, more keys", (1, 500, 8, 1, 16), gradient=False, keys=1100, window=90),
    cached_case("decode, window", (2, 1, 9, 3, 64), 300, 270, window=100),
    cached_case("prompt chunk, window, softcap", (2, 33, 4, 2, 20), 300, 240, window=70, softcap=3.0),
    cached_case("decode", (2, 1, 9, 3, 64), 80, 70),
    cached_case("decode, first token", (1, 1, 4, 2, 20), 8, 1),
    cached_case("decode, full cache", (1, 1, 4, 4, 16), 130, 130),
    cached_case("prompt chunk", (2, 33, 4, 2, 20), 128, 100),
    cached_case("large decode", (1, 1, 32, 8, 64), 1000, 900, tolerance=8e-7),
]
