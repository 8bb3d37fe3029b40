"""Prefix tuning beside PEFT's: logits, gradients, files on every base; packing, generation, the context."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.adapters.peft import CONFIG_FILE, load_adapter, save_adapter
from entrenar.adapters.prefix import PrefixConfig
from entrenar.errors import ConfigError, FormatError, ShapeError
from entrenar.llama import LLaMAModel
from entrenar.models.api import LLaMAModel as Model

from ..models.builders import gradients_of, random_arrays, relative_error
from . import peers
from .reference import base_model, batch, gqa_config, logits_of

CONFIG = gqa_config(2)
TOKENS, TARGETS = batch(CONFIG)
P = 5


def prefix_model(base: str = "fp32", tokens: int = P) -> LLaMAModel:
    model = base_model(base, CONFIG)
    PrefixConfig(num_virtual_tokens=tokens).apply(model, seed=3)
    return model


def flat_gradient(model: LLaMAModel) -> np.ndarray:
    """The gradient of the prefix in the layout of PEFT's file."""
    found = gradients_of(model)
    return np.concatenate([found[name] for name in PrefixConfig(P).adapter_shapes(CONFIG)], axis=1)


@pytest.mark.gradient
@pytest.mark.peers
@pytest.mark.parametrize("base", ["fp32", "q4_0"])
def test_logits_gradients_and_files_are_those_of_peft(base: str, tmp_path: Path) -> None:
    model = prefix_model(base)
    save_adapter(model, tmp_path / "adapter")
    base_of_theirs = peers.hf_base(tmp_path / "base", CONFIG, peers.base_arrays(model, CONFIG))
    theirs = peers.peft_model(base_of_theirs, tmp_path / "adapter", trainable=False)
    theirs.prompt_encoder.default.embedding.weight.requires_grad_(True)
    expected = peers.logits(theirs, TOKENS)
    assert relative_error(expected, logits_of(base_model(base, CONFIG), TOKENS)) > 1e-2  # the prefix is really there
    np.testing.assert_allclose(logits_of(model, TOKENS), expected, rtol=0, atol=1e-4)
    model.loss(TOKENS, TARGETS).backward()
    (gradient,) = peers.gradients(theirs, TOKENS, TARGETS).values()
    assert relative_error(flat_gradient(model), gradient) < 1e-4
    theirs.save_pretrained(str(tmp_path / "again"))
    again = base_model(base, CONFIG)
    load_adapter(again, tmp_path / "again")
    np.testing.assert_array_equal(logits_of(again, TOKENS), logits_of(model, TOKENS))


@pytest.mark.peers
def test_a_new_prefix_of_peft_and_a_projected_one_compute_the_same_here(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    for name, settings in {
        "plain": {},
        "zero": {"init_weights": "zero"},
        "projected": {"prefix_projection": True},
    }.items():
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, **settings)
        theirs = peers.peft_model(peers.hf_base(tmp_path / "base", CONFIG, random_arrays(CONFIG)), config)
        theirs.save_pretrained(str(tmp_path / name))
        expected = peers.logits(theirs, TOKENS)
        model = LLaMAModel.from_pretrained(tmp_path / "base")
        load_adapter(model, tmp_path / name)
        np.testing.assert_allclose(logits_of(model, TOKENS), expected, rtol=0, atol=1e-4, err_msg=name)


@pytest.mark.unit
def test_packed_sequences_each_see_the_prefix_and_not_one_another() -> None:
    model, ends = prefix_model(), [0, 4, 11, 22]
    model.loss(
        TOKENS,
        TARGETS,
        np.concatenate([np.arange(b - a) for a, b in itertools.pairwise(ends)]).reshape(2, 11),
        np.array(ends),
    ).backward()
    packed = flat_gradient(model)
    flat, targets, total = TOKENS.reshape(-1), TARGETS.reshape(-1), 0.0
    for _, tensor in model.trainable_parameters():
        tensor.grad = None
    trained = int((targets != -100).sum())
    for a, b in itertools.pairwise(ends):
        if (targets[a:b] != -100).any():
            loss = model.loss(flat[None, a:b], targets[None, a:b], divisor=trained)
            total += loss.item()
            loss.backward()
    assert relative_error(packed, flat_gradient(model)) < 1e-5
    positions = np.concatenate([np.arange(b - a) for a, b in itertools.pairwise(ends)]).reshape(2, 11)
    assert model.loss(TOKENS, TARGETS, positions, np.array(ends)).item() == pytest.approx(total, rel=1e-5)


@pytest.mark.unit
def test_generation_begins_its_caches_with_the_prefix() -> None:
    model, prompt = prefix_model(), TOKENS[0, :6].tolist()
    found = model.generate(prompt, max_new_tokens=5, stop=())
    expected = list(prompt)
    for _ in range(5):
        expected.append(int(logits_of(model, np.array([expected]))[0, -1].argmax()))
    assert found == expected[6:]
    assert found != base_model(config=CONFIG).generate(prompt, max_new_tokens=5, stop=())


@pytest.mark.unit
def test_the_prefix_takes_positions_of_the_context() -> None:
    model, context = prefix_model(), CONFIG.max_position_embeddings
    tokens = np.zeros((1, context - P), np.int64)
    assert model(tokens).shape == (1, context - P, CONFIG.vocab_size)
    with pytest.raises(ShapeError, match=f"A sequence of {context + 1} positions is longer than the model's context"):
        model(np.zeros((1, context - P + 1), np.int64))
    with pytest.raises(ShapeError, match=f"generate: {P} tokens of the prefix, {context - P} prompt tokens and 1 new"):
        model.generate([1] * (context - P), max_new_tokens=1)
    assert PrefixConfig(P).added_positions == P


# ---------------------------------------------------------------------- settings and files
@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_virtual_tokens": None}, "num_virtual_tokens is null, expected an integer."),
        ({"num_virtual_tokens": 0}, "num_virtual_tokens is 0, expected at least 1."),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules is 2, which is not supported (expected 1"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head'], which is not supported"),
        ({"init_weights": "ones"}, "init_weights is 'ones'"),
        ({"num_layers": "2"}, "num_layers is '2', expected a number of at least 1."),
        ({"num_layers": 3}, "num_layers is 3, and the model has 2; give the model that it was trained over."),
        ({"num_attention_heads": 4}, "num_attention_heads is 4, and the model has 2;"),
        ({"token_dim": 64}, "token_dim is 64, and the model has 32;"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_adapter(prefix_model(), tmp_path)
    path = tmp_path / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    model = base_model(config=CONFIG)
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {message}")):
        load_adapter(model, tmp_path)
    assert model.adapter_config is None


@pytest.mark.unit
def test_a_file_of_another_length_and_a_tree_without_attention_are_refused(tmp_path: Path) -> None:
    save_adapter(prefix_model(), tmp_path)
    path = tmp_path / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_virtual_tokens": P + 1}))
    with pytest.raises(FormatError, match=r"prompt_embeddings has shape \(5, 128\), expected \(6, 128\);"):
        load_adapter(base_model(config=CONFIG), tmp_path)
    with pytest.raises(ConfigError, match="A prefix needs a model with layers of attention"):
        PrefixConfig().apply(base_model(config=CONFIG).model.norm)


@pytest.mark.unit
def test_the_seed_and_init_weights_decide_the_first_values() -> None:
    first, second = prefix_model(), prefix_model()
    for (name, ours), (_, other) in zip(first.trainable_parameters(), second.trainable_parameters(), strict=True):
        np.testing.assert_array_equal(ours.numpy(), other.numpy(), err_msg=name)
    zero = base_model(config=CONFIG)
    PrefixConfig(P, "zero").apply(zero)
    assert all((tensor.numpy() == 0).all() for _, tensor in zero.trainable_parameters())
    assert isinstance(zero, Model)
