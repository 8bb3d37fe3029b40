"""Keys and values of tokens that ran through a model: of one batch, or of sequences that come and go."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from entrenar.autograd import Tensor, no_grad
from entrenar.autograd.ops.attention import CacheRows, cached_attention, write_cache
from entrenar.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from entrenar.models.api import LLaMAModel
    from entrenar.models.config import LLaMAConfig


NOBODY = np.empty(0, np.int64)


def common_beginning(tokens: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two sequences have in common before they differ."""
    shorter = min(len(tokens), len(others))
    return next((i for i in range(shorter) if tokens[i] != others[i]), shorter)


class KeyValueCache(Protocol):
    """What a layer's attention asks of its cache."""

    def append(self, k: Tensor, v: Tensor) -> None:
        """Add the keys and values of new tokens, (batch, T, kv_heads, head_dim)."""

    def attend(self, q: Tensor, options: Mapping[str, Any]) -> Tensor:
        """Attention of the last tokens over what is held; options are those of cached_attention."""


class LayerCache:
    """Keys and values of one layer, (batch, capacity, kv_heads, head_dim), filled from the front."""

    def __init__(self, batch: int, capacity: int, kv_heads: int, head_dim: int) -> None:
        self.keys = Tensor.empty(batch, capacity, kv_heads, head_dim)
        self.values = Tensor.empty(batch, capacity, kv_heads, head_dim)
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> None:
        """Add the keys and values of new tokens."""
        write_cache(self.keys, self.length, k)
        write_cache(self.values, self.length, v)
        self.length += k.shape[1]

    def attend(self, q: Tensor, options: Mapping[str, Any]) -> Tensor:
        """Attention of the last tokens over what is held; options are those of cached_attention."""
        return cached_attention(q, self.keys, self.values, self.length, **options)


class SlotCache:
    """Keys and values of one layer, (slots, capacity, kv_heads, head_dim): a sequence has a slot, of its own length.

    `select` says which slots the rows of the next batch are, and how long each is before and after it.
    """

    def __init__(self, slots: int, capacity: int, kv_heads: int, head_dim: int) -> None:
        self.keys = Tensor.empty(slots, capacity, kv_heads, head_dim)  # memory that is not written costs nothing
        self.values = Tensor.empty(slots, capacity, kv_heads, head_dim)
        self._before = self._after = CacheRows(NOBODY, NOBODY)

    def select(self, before: CacheRows, after: CacheRows) -> None:
        """The rows of the next batch."""
        self._before, self._after = before, after

    def append(self, k: Tensor, v: Tensor) -> None:
        """Add the keys and values of new tokens, each row's to its slot."""
        write_cache(self.keys, self._before, k)
        write_cache(self.values, self._before, v)

    def attend(self, q: Tensor, options: Mapping[str, Any]) -> Tensor:
        """Attention of each row's last tokens over its slot."""
        return cached_attention(q, self.keys, self.values, self._after, **options)


def longest_alike(config: LLaMAConfig) -> int:
    """The longest sequence, at most the context, whose positions are rotated as a short one's are."""
    lengths = range(1, config.context + 1)
    return bisect.bisect_left(lengths, True, key=lambda length: config.rotary_span(length) != config.rotary_span(1))


@dataclass(frozen=True)
class _Held:
    """What a slot holds: the tokens of a sequence of a model, behind its prefix, the first `asked` of them a prompt."""

    model: LLaMAModel | None
    tokens: Sequence[int]
    asked: int

    def shared(self, model: LLaMAModel, prompt: Sequence[int]) -> int:
        """The tokens that a prompt for `model` begins with too, all but its last at most."""
        return common_beginning(self.tokens, prompt[:-1]) if self.model is model else 0

    def goes_on(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt begins with all of this one's, or of what ran of it."""
        begun = self.tokens[: self.asked]
        return list(prompt[: len(begun)]) == list(begun)


NOTHING = _Held(None, (), 0)


class Slots:
    """Caches of every layer for several sequences at once, that models of one base share.

    A sequence takes a slot with `open` and gives it back with `close`; the next one that begins alike goes on from what
    the slot holds. `run` puts new tokens of some sequences through a model together. Raises ConfigError where
    `capacity` is above `longest_alike`.
    """

    def __init__(self, model: LLaMAModel, slots: int, capacity: int) -> None:
        config, longest = model.config, longest_alike(model.config)
        if capacity > longest:
            raise ConfigError(
                f"A context of {capacity} tokens: this model takes sequences of at most {longest} that run together, "
                "beyond which its rope scaling rotates short and long ones in other ways; ask for fewer."
            )
        self.capacity, self.lengths = capacity, np.zeros(slots, np.int64)
        self._free = deque(range(slots))  # the first is the one that was given back first
        self._held = [NOTHING] * slots
        self._layers = [
            SlotCache(slots, capacity, config.kv_heads, config.head_size) for _ in range(config.num_hidden_layers)
        ]

    @property
    def free(self) -> int:
        """Slots that no sequence has."""
        return len(self._free)

    @no_grad()
    def open(self, model: LLaMAModel, prompt: Sequence[int], *, reuse: bool = True) -> tuple[int, int]:
        """(a slot for a new sequence of `model`, how many tokens of its prompt the slot holds: not the last one).

        A prompt that goes on from the whole prompt of an earlier sequence has that one's slot. Others have the slot
        that was given back first, and in it, copied, what they share with an earlier sequence; without `reuse` nothing
        is shared. An adapter's prefix is in the slot.
        """
        shared = {slot: self._held[slot].shared(model, prompt) if reuse else 0 for slot in self._free}
        source = max(self._free, key=lambda slot: shared[slot])
        slot = source if self._held[source].goes_on(prompt) else self._free[0]
        prefix, common = model.prefix_length, shared[source]
        self._held[slot] = NOTHING  # should writing fail half way
        if not common:
            self._write_prefix(model, slot)
        elif slot != source:
            self._select([slot], np.zeros(1, np.int64), prefix + common)
            for cache in self._layers:
                cache.append(*(kept[source : source + 1, : prefix + common] for kept in (cache.keys, cache.values)))
        self._free.remove(slot)
        self._held[slot] = _Held(model, (), len(prompt))
        self.lengths[slot] = prefix + common
        return slot, common

    def close(self, slot: int, tokens: Sequence[int]) -> None:
        """Give a slot back, with the tokens that ran in it."""
        self._held[slot] = replace(self._held[slot], tokens=tokens)
        self._free.append(slot)

    def _write_prefix(self, model: LLaMAModel, slot: int) -> None:
        if not model.prefix_length:
            return
        self._select([slot], np.zeros(1, np.int64), model.prefix_length)
        for cache, layer in zip(self._layers, model.model.layers, strict=True):
            assert layer.self_attn.prefix is not None
            cache.append(*layer.self_attn.prefix.cached(model.config.kv_heads))

    def _select(self, slots: ArrayLike, before: np.ndarray, new: int) -> None:
        rows = CacheRows(slots, before), CacheRows(slots, before + new)
        for cache in self._layers:
            cache.select(*rows)

    @no_grad()
    def run(self, model: LLaMAModel, slots: Sequence[int], tokens: np.ndarray, *, last_only: bool = True) -> Tensor:
        """Final hidden states (sequences, T, hidden) of new tokens (sequences, T), or those of the last alone.

        Their keys and values join the slots. ShapeError where a slot has no room for them.
        """
        rows = np.asarray(slots, np.int64)
        before = self.lengths[rows]
        self._select(rows, before, tokens.shape[1])
        positions = before[:, None] + np.arange(tokens.shape[1])
        hidden = model.hidden_states(tokens, positions, caches=self._layers, length=self.capacity, last_only=last_only)
        self.lengths[rows] = before + tokens.shape[1]
        return hidden
