"""Generation: the cache gives what a full forward gives, sampling keeps what it promises, stops and errors."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from typing import Any

import numpy as np
import pytest

from entrenar.autograd import Tensor, grad_enabled, linear, no_grad
from entrenar.errors import ConfigError, EntrenarError, NumericsError, ShapeError
from entrenar.llama import LLaMAModel
from entrenar.llama import generate as generate_function
from entrenar.models.generate import LayerCache, sample
from entrenar.models.generation import Generation
from entrenar.qlora import QLoRAConfig

from .builders import random_model, random_tokens, small_config

VARIANTS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "tied, one kv head, head size 24": {"tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": 24},
    "multi-head": {"num_key_value_heads": 4},
}
every_variant = pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def draw(logits: np.ndarray, generator: np.random.Generator, **options: Any) -> int:
    return sample(logits, generator, **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} | options))


def greedy_without_cache(model: LLaMAModel, prompt: list[int], count: int) -> list[int]:
    tokens = list(prompt)
    with no_grad():
        for _ in range(count):
            tokens.append(int(model(np.array([tokens])).numpy()[0, -1].argmax()))
    return tokens[len(prompt) :]


# ---------------------------------------------------------------------- the cache
@pytest.mark.unit
@every_variant
@pytest.mark.parametrize("pieces", [[1] * 30, [7, 1, 1, 13, 8], [29, 1]], ids=["one by one", "mixed", "prompt first"])
def test_a_sequence_in_pieces_gives_the_logits_of_the_whole(
    changes: dict[str, Any], pieces: list[int], tier: str
) -> None:
    model = random_model(small_config(**changes), std=0.3)
    config = model.config
    tokens = random_tokens(config, 2, 30)
    caches = [LayerCache(2, 30, config.kv_heads, config.head_size) for _ in range(config.num_hidden_layers)]
    parts, start = [], 0
    with no_grad():
        for count in pieces:
            positions = np.broadcast_to(np.arange(start, start + count), (2, count))
            hidden = model.hidden_states(tokens[:, start : start + count], positions, caches=caches)
            parts.append(linear(hidden, model.head_weight).numpy())
            start += count
        whole = model(tokens).numpy()
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=1e-4)
    assert all(cache.length == 30 for cache in caches)


@pytest.mark.unit
@every_variant
def test_the_last_position_alone_is_that_of_the_whole(changes: dict[str, Any]) -> None:
    model = random_model(small_config(**changes), std=0.3)
    config = model.config
    tokens = random_tokens(config, 2, 30)
    found = []
    for last_only in (False, True):
        caches = [LayerCache(2, 30, config.kv_heads, config.head_size) for _ in range(config.num_hidden_layers)]
        with no_grad():
            model.hidden_states(tokens[:, :13], caches=caches, last_only=last_only)
            positions = np.broadcast_to(np.arange(13, 30), (2, 17))
            found.append(model.hidden_states(tokens[:, 13:], positions, caches=caches, last_only=last_only).numpy())
    assert found[1].shape == (2, 1, config.hidden_size)
    np.testing.assert_allclose(found[1], found[0][:, -1:], rtol=0, atol=1e-5)


@pytest.mark.unit
@every_variant
def test_greedy_generation_is_that_of_full_forwards(changes: dict[str, Any]) -> None:
    model = random_model(small_config(**changes), std=0.3)
    for prompt in ([5], [3, 1, 4, 1, 5, 9, 2, 6]):
        continued = model.generate(prompt, max_new_tokens=30)
        assert continued == greedy_without_cache(model, prompt, 30)
        assert len(set(continued)) > 5


@pytest.mark.unit
def test_a_long_prompt_in_chunks_continues_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(std=0.3)
    prompt = random_tokens(model.config, 1, 41)[0]
    whole = model.generate(prompt, max_new_tokens=12)
    for chunk in (1, 7, 40):
        monkeypatch.setattr(import_module("entrenar.models.generate"), "PREFILL_CHUNK", chunk)
        assert model.generate(prompt, max_new_tokens=12) == whole


@pytest.mark.unit
def test_a_four_bit_model_with_adapters_generates_what_it_predicts() -> None:
    model = random_model(small_config(hidden_size=128, intermediate_size=128), std=0.3)
    model.to_qlora(QLoRAConfig(rank=4, target_modules=["all-linear"]))
    for name, weight in model.trainable_parameters():
        weight.numpy()[...] = 0.2 * rng(len(name)).standard_normal(weight.shape)
    assert model.generate([1, 2, 3], max_new_tokens=20) == greedy_without_cache(model, [1, 2, 3], 20)


@pytest.mark.memory
def test_generation_records_nothing_and_restores_the_tape() -> None:
    model = random_model()
    assert grad_enabled()
    model.generate([1], max_new_tokens=3)
    assert grad_enabled()
    with pytest.raises(ShapeError):
        model.generate([], max_new_tokens=3)
    assert grad_enabled()
    assert all(weight.grad is None for _, weight in model.trainable_parameters())


# ---------------------------------------------------------------------- stops and lengths
@pytest.mark.unit
def test_generation_ends_at_a_stop_token_or_the_length() -> None:
    model = random_model(std=0.3)
    free = model.generate([5, 6], max_new_tokens=30)
    assert len(free) == 30
    stop = free[11]
    cut = free.index(stop)
    assert model.generate([5, 6], max_new_tokens=30, stop=(stop,)) == free[:cut]
    assert model.generate([5, 6], max_new_tokens=30, stop=[stop, free[3]]) == free[: min(cut, free.index(free[3]))]
    assert model.generate([5, stop], max_new_tokens=1, stop=(10**6,)) != []  # a stop token of the prompt is no end
    assert model.generate([5, 6], max_new_tokens=0) == []
    assert model.generate([5, 6], max_new_tokens=4) == free[:4]


@pytest.mark.unit
def test_tokens_are_reported_as_they_come() -> None:
    model = random_model(std=0.3)
    seen: list[int] = []
    assert model.generate([5, 6], max_new_tokens=9, on_token=seen.append) == seen
    assert len(seen) == 9
    assert all(isinstance(token, int) for token in seen)


@pytest.mark.unit
def test_the_context_can_be_filled_to_its_end() -> None:
    model = random_model()
    assert len(model.generate(np.arange(60), max_new_tokens=4)) == 4
    assert len(generate_function(model, np.arange(64, dtype=np.uint8), max_new_tokens=0)) == 0
    with pytest.raises(ShapeError, match="60 prompt tokens and 5 new ones exceed the model's context of 64; shorten"):
        model.generate(np.arange(60), max_new_tokens=5)


# ---------------------------------------------------------------------- sampling
@pytest.mark.unit
def test_a_seed_decides_the_sample() -> None:
    model = random_model(std=0.2)
    options: dict[str, Any] = {"max_new_tokens": 25, "temperature": 1.5}
    samples = [model.generate([1, 2], seed=seed, **options) for seed in range(4)]
    assert [model.generate([1, 2], seed=seed, **options) for seed in range(4)] == samples
    assert len({tuple(tokens) for tokens in samples}) == 4
    assert model.generate([1, 2], **options) == samples[0]


@pytest.mark.unit
def test_choosing_among_one_is_greedy() -> None:
    model = random_model(std=0.3)
    greedy = model.generate([1, 2], max_new_tokens=20)
    for options in ({"top_k": 1, "temperature": 5.0}, {"top_p": 1e-9, "temperature": 5.0}, {"temperature": 1e-300}):
        assert model.generate([1, 2], max_new_tokens=20, seed=7, **options) == greedy


@pytest.mark.unit
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_their_probability_says(temperature: float) -> None:
    logits = np.array([2.0, 1.0, 0.0, -1.0, 1.5], np.float32)
    expected = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    generator, draws = rng(), 6_000
    counts = Counter(draw(logits, generator, temperature=temperature) for _ in range(draws))
    frequencies = np.array([counts[token] for token in range(5)]) / draws
    assert (np.abs(frequencies - expected) < 4.5 * np.sqrt(expected * (1 - expected) / draws)).all()


@pytest.mark.unit
def test_only_the_most_likely_are_drawn_under_top_k_and_top_p() -> None:
    logits = np.log(np.array([0.05, 0.4, 0.1, 0.3, 0.15], np.float32))

    def drawn(**options: Any) -> set[int]:
        generator = rng()
        return {draw(logits, generator, **options) for _ in range(600)}

    assert drawn() == {0, 1, 2, 3, 4}
    assert drawn(top_k=2) == {1, 3}
    assert drawn(top_k=99) == {0, 1, 2, 3, 4}
    assert drawn(top_p=0.39) == {1}
    assert drawn(top_p=0.41) == {1, 3}  # the token that crosses the bound belongs to the nucleus
    assert drawn(top_p=0.84) == {1, 3, 4}
    assert drawn(top_k=3, top_p=0.8) == {1, 3}  # of what top_k kept: 0.47, 0.35, 0.18


@pytest.mark.unit
def test_ties_and_extreme_temperatures_draw_a_token() -> None:
    equal = np.zeros(4, np.float32)
    assert draw(equal, rng(), temperature=0.0) == 0
    assert {draw(equal, rng(seed)) for seed in range(60)} == {0, 1, 2, 3}
    wide = np.array([-3e38, 0.0, 3e38], np.float32)
    assert draw(wide, rng()) == 2
    assert draw(np.array([1.0, 2.0], np.float32), rng(), temperature=5e-324) == 1


# ---------------------------------------------------------------------- what is refused
@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"max_new_tokens": -1}, "max_new_tokens -1"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"generate: .*{message}.*: expected temperature >= 0, top_k >= 0, 0 < top"):
        random_model().generate([1], **options)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "non-empty list of token ids"),
        ([[1, 2]], r"not shape \(1, 2\)"),
        ([1.5], "non-empty list of token ids"),
        ([67], "67"),
        ([-1], "-1"),
        (list(range(65)), "exceed the model's context of 64"),
    ],
)
def test_a_prompt_that_is_no_prompt_is_refused(prompt: Any, message: str) -> None:
    with pytest.raises(EntrenarError, match=message):
        random_model().generate(prompt, max_new_tokens=2)


@pytest.mark.unit
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_damaged_weights_end_in_an_error_not_in_a_token(value: float, temperature: float) -> None:
    model = random_model()
    weight = dict(model.named_parameters())["model.norm.weight"]
    assert isinstance(weight, Tensor)
    weight.numpy()[3] = value
    with pytest.raises(NumericsError, match="logits are not finite"):
        model.generate([1], max_new_tokens=2, temperature=temperature)


@pytest.mark.unit
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("suppressed", [(), (3,)], ids=["plain", "suppressed"])
def test_one_logit_that_is_not_finite_is_an_error(
    value: float, suppressed: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model()
    logits = np.zeros((1, 1, model.config.vocab_size), np.float32)
    logits[0, 0, 3] = value
    monkeypatch.setattr(model, "logits", lambda hidden: Tensor(logits))
    with pytest.raises(NumericsError, match="logits are not finite"):
        model.generate([1], max_new_tokens=2, generation=Generation(suppress_tokens=suppressed))
