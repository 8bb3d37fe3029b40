"""A module tree that is watched: every output by name, innermost first, and the tree as it was afterwards."""

from __future__ import annotations

import numpy as np
import pytest

from entrenar.autograd import Tensor, no_grad

from ..models.builders import random_model, random_tokens, small_config

pytestmark = pytest.mark.unit


def test_every_module_shows_what_it_returns_innermost_first() -> None:
    model = random_model(small_config(num_hidden_layers=1))
    tokens = random_tokens(model.config, 1, 5)
    before, expected = dict(model.named_modules()), model(tokens).numpy().copy()
    seen: dict[str, np.ndarray] = {}

    def watch(name: str, output: Tensor) -> None:
        assert name not in seen
        seen[name] = output.numpy().copy()

    with no_grad(), model.watching(watch):
        watched = model(tokens).numpy()
    np.testing.assert_array_equal(watched, expected)
    layer = "model.layers.0"
    parts = ["input_layernorm", "self_attn", "post_attention_layernorm", "mlp"]
    assert list(seen) == ["model.embed_tokens", *(f"{layer}.{part}" for part in parts), layer, "model.norm"]
    total = seen["model.embed_tokens"] + seen[f"{layer}.self_attn"] + seen[f"{layer}.mlp"]
    np.testing.assert_allclose(seen[layer], total, rtol=1e-5, atol=1e-6)
    assert dict(model.named_modules()) == before


def test_the_tree_is_as_it_was_after_an_error() -> None:
    model = random_model()
    before = dict(model.named_modules())

    def watch(name: str, output: Tensor) -> None:
        raise RuntimeError(name)

    with pytest.raises(RuntimeError, match=r"model\.embed_tokens"), model.watching(watch):
        model(random_tokens(model.config, 1, 5))
    assert dict(model.named_modules()) == before
    assert len(before) == len(dict(model.named_modules())) > 20


def test_watching_ends_with_the_recomputation_of_layers_too() -> None:
    model = random_model()
    model.gradient_checkpointing = True
    tokens = random_tokens(model.config, 1, 5)
    names: list[str] = []
    with model.watching(lambda name, _: names.append(name)):
        model.loss(tokens, tokens).backward()
    assert names.count("model.layers.1.mlp") == 2 and names.count("model.norm") == 1
