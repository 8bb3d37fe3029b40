"""Keys and values that an attention sees before those of its own tokens."""

from __future__ import annotations

import itertools

import numpy as np

from entrenar.autograd import Tensor, concatenate, embedding
from entrenar.nn.module import Module


class KeyValuePrefix(Module):
    """Keys and values (tokens, kv heads * head size) that stand before those of every sequence, as they are cached.

    Rotary positions and norms of heads do not act on them. Li and Liang, "Prefix-Tuning", 2021 (arXiv 2101.00190).
    """

    watched = False

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    @property
    def length(self) -> int:
        """Tokens of the prefix."""
        return self.keys.shape[0]

    def prepend(self, k: Tensor, v: Tensor, cu_seqlens: np.ndarray | None) -> tuple[Tensor, Tensor, np.ndarray | None]:
        """k and v (batch, T, kv heads, head size) with the prefix before every sequence, and where those then end.

        Without `cu_seqlens`, the ends of packed sequences, they get the shape (batch, prefix + T, ...); with them
        (1, ..., kv heads, head size) and the ends of the longer sequences.
        """
        batch, length, heads, size = k.shape
        ends = np.arange(batch + 1) * length if cu_seqlens is None else np.asarray(cu_seqlens)
        ends = ends.astype(np.int64)
        ours = np.arange(self.length, dtype=np.int64)
        pairs = list(itertools.pairwise(ends.tolist()))
        rows = np.concatenate([part for a, b in pairs for part in (ours, self.length + np.arange(a, b))])
        shape = (batch, self.length + length) if cu_seqlens is None else (1, rows.size)
        tables = [
            concatenate([prefix, x.reshape(batch * length, heads * size)])
            for prefix, x in ((self.keys, k), (self.values, v))
        ]
        k, v = (embedding(rows, table).reshape(*shape, heads, size) for table in tables)
        return k, v, None if cu_seqlens is None else ends + self.length * np.arange(ends.size)

    def cached(self, heads: int) -> tuple[Tensor, Tensor]:
        """Keys and values as (1, tokens, kv heads, head size), which a cache begins with."""
        k, v = (x.reshape(1, self.length, heads, x.shape[1] // heads) for x in (self.keys, self.values))
        return k, v


class PrefixedAttention(Module):
    """An attention whose keys and values a prefix may precede."""

    kv_heads: int
    head_dim: int
    prefix: KeyValuePrefix | None = None
