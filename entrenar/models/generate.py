"""Greedy and sampled generation with a key/value cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from entrenar.autograd import no_grad
from entrenar.errors import ConfigError, NumericsError, ShapeError
from entrenar.models.caches import LayerCache, common_beginning
from entrenar.models.generation import Generation

if TYPE_CHECKING:
    from entrenar.models.api import LLaMAModel

PREFILL_CHUNK = 512  # prompt tokens that run through the model at once: bounds the activations of a long prompt
NOT_FINITE = "generate: the model's logits are not finite; its weights are damaged or training diverged."


class Cache:
    """Keys and values of a sequence that stay from one call of `generate` to the next.

    What the next prompt begins with as the last sequence did is not computed again: a conversation costs its new turn.
    It belongs to one model with its adapters; a call that was interrupted leaves it usable.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []  # whose keys and values are held, after the prefix
        self.layers: list[LayerCache] = []
        self._span: object = None  # how the held keys are rotated, where that depends on the length

    def prepared(self, model: LLaMAModel, prompt: Sequence[int], capacity: int) -> list[LayerCache]:
        """Layers with room for `capacity` tokens that hold the common beginning, all but the last token at most."""
        prefix, common = model.prefix_length, common_beginning(self.tokens, prompt[:-1])
        if self._span != model.config.rotary_span(prefix + common):
            common = 0
        if not self.layers or self.layers[0].keys.shape[1] < prefix + capacity:
            room = min(max(capacity, 2 * len(self.tokens)), model.config.context - prefix)
            grown = _caches(model, max(room, capacity))
            for old, new in zip(self.layers, grown, strict=bool(self.layers)):
                kept = slice(0, prefix + common)
                new.keys.numpy()[:, kept] = old.keys.numpy()[:, kept]
                new.values.numpy()[:, kept] = old.values.numpy()[:, kept]
            self.layers = grown
        self.tokens = self.tokens[:common]
        for layer in self.layers:
            layer.length = prefix + common
        return self.layers

    def keep(self, model: LLaMAModel, written: Sequence[int], longest: int) -> None:
        """Note what the layers hold after tokens up to `longest` of `written` ran; some may hold more than others."""
        if self.layers:
            held = min(layer.length for layer in self.layers)
            self.tokens = list(written[: held - model.prefix_length])
            self._span = model.config.rotary_span(model.prefix_length + longest)


def sample(logits: np.ndarray, rng: np.random.Generator, temperature: float, top_k: int, top_p: float) -> int:
    """One token id from logits (vocab,): temperature, then the top_k most likely, then the top_p nucleus.

    Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020, for the nucleus.
    """
    likeliest = int(np.argmax(logits))  # the first NaN where there is one
    if not math.isfinite(logits[likeliest]):  # -inf elsewhere: a token that is not to come
        raise NumericsError(NOT_FINITE)
    if temperature == 0.0:
        return likeliest
    with np.errstate(over="ignore"):  # a tiny temperature sends every logit but the largest to minus infinity
        scaled = (logits.astype(np.float64) - logits[likeliest]) / temperature
    order = np.argsort(-scaled, kind="stable")[: top_k or None]
    probabilities = np.exp(scaled[order])
    probabilities /= probabilities.sum()
    nucleus = int(np.searchsorted(np.cumsum(probabilities), top_p)) + 1  # the smallest set that reaches top_p
    probabilities = probabilities[:nucleus] / probabilities[:nucleus].sum()
    return int(rng.choice(order[:nucleus], p=probabilities))


def _check(model: LLaMAModel, prompt: np.ndarray, temperature: float, top_k: int, top_p: float, new: int) -> None:
    if prompt.ndim != 1 or prompt.size == 0 or prompt.dtype.kind not in "iu":
        raise ShapeError(f"generate: the prompt must be a non-empty list of token ids, not shape {prompt.shape}.")
    if not temperature >= 0.0 or top_k < 0 or not 0.0 < top_p <= 1.0 or new < 0:
        raise ConfigError(
            f"generate: temperature {temperature}, top_k {top_k}, top_p {top_p}, max_new_tokens {new}: expected "
            "temperature >= 0, top_k >= 0, 0 < top_p <= 1 and max_new_tokens >= 0."
        )
    prefix = model.prefix_length
    if prefix + prompt.size + new > model.config.context:
        before = f"{prefix} tokens of the prefix, " if prefix else ""
        raise ShapeError(
            f"generate: {before}{prompt.size} prompt tokens and {new} new ones exceed the model's context of "
            f"{model.config.context}; shorten the prompt or ask for fewer."
        )


@no_grad()
def generate(
    model: LLaMAModel,
    tokens: np.ndarray | list[int],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[int] | None = None,
    generation: Generation | None = None,
    on_token: Callable[[int], None] | None = None,
    cache: Cache | None = None,
) -> list[int]:
    """The token ids that continue `tokens`, up to `max_new_tokens` or the first of `stop` (which is not returned).

    `stop` is by default what ends a text of the model: the tokens of generation_config.json, else of config.json.
    `generation` is by default the model's, with what its generation_config.json asks to be done to the logits.
    A `cache` keeps keys and values for the next call.
    Adapters take part without their dropout. Temperature 0 is greedy; top_k 0 and top_p 1 keep every token. Raises
    ShapeError where prompt and new tokens exceed the context, ConfigError for sampling options out of range and for
    settings of generation_config.json that are not supported.
    """
    generation = model.generation if generation is None else generation
    generation.check()
    ends = generation.end_tokens if stop is None else stop
    prompt = np.asarray(tokens)
    _check(model, prompt, temperature, top_k, top_p, max_new_tokens)
    cache = cache or Cache()
    rng = np.random.Generator(np.random.Philox(seed))
    written: list[int] = prompt.tolist()
    caches = cache.prepared(model, written, prompt.size + max_new_tokens)
    ids = np.empty(prompt.size + max_new_tokens, np.int64)  # the same, for the model
    ids[: prompt.size] = prompt
    ran = len(written)
    try:
        with model.evaluating():
            while len(written) < ids.size:
                ran = len(written)
                logits = generation.process(_next_logits(model, ids[:ran], caches), written, prompt.size)
                token = sample(logits, rng, temperature, top_k, top_p)
                if token in ends:
                    break
                ids[len(written)] = token
                written.append(token)
                if on_token is not None:
                    on_token(token)
    finally:
        cache.keep(model, written, ran)
    return written[prompt.size :]


def _caches(model: LLaMAModel, capacity: int) -> list[LayerCache]:
    """Caches for so many tokens, each with its layer's prefix where there is one."""
    kv_heads, head_size = model.config.kv_heads, model.config.head_size
    caches = []
    for layer in model.model.layers:
        caches.append(LayerCache(1, model.prefix_length + capacity, kv_heads, head_size))
        if layer.self_attn.prefix is not None:
            caches[-1].append(*layer.self_attn.prefix.cached(kv_heads))
    return caches


def _next_logits(model: LLaMAModel, tokens: np.ndarray, caches: list[LayerCache]) -> np.ndarray:
    """Logits (vocab,) after `tokens` (n,); those that the caches lack join them.

    Where the new length rotates every position in another way (dynamic and longrope scaling), what the caches hold is
    computed again: the logits are those of the whole sequence without a cache.
    """
    prefix = model.prefix_length
    total = prefix + len(tokens)
    if model.config.rotary_span(caches[0].length) != model.config.rotary_span(total):
        for cache in caches:
            cache.length = prefix  # whose keys are not rotated
    hidden = None
    for start in range(caches[0].length, total, PREFILL_CHUNK):
        end = min(start + PREFILL_CHUNK, total)
        positions, chunk = np.arange(start, end, dtype=np.int64)[None, :], tokens[None, start - prefix : end - prefix]
        hidden = model.hidden_states(chunk, positions, caches=caches, length=total, last_only=True)
    assert hidden is not None
    logits = model.logits(hidden).numpy()[0, 0]
    if not math.isfinite(logits.min()) or not math.isfinite(logits.max()):  # both are NaN where a logit is
        raise NumericsError(NOT_FINITE)
    return logits
