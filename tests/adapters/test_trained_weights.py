"""modules_to_save and biases beside PEFT's: logits, gradients, files both ways, tied and untied, merged, resumed."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.adapters.lora import LoRAConfig
from entrenar.adapters.peft import load_adapter, save_adapter
from entrenar.errors import ConfigError, FormatError
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.train.memory import StepMemory

from ..models.builders import gradients_of, random_arrays, weights_of
from . import peers
from .reference import base_model, batch, gqa_config, logits_of

UNTIED = gqa_config(2)
TIED = dataclasses.replace(UNTIED, tie_word_embeddings=True)
BIASED = dataclasses.replace(UNTIED, family="qwen2")
TOKENS, TARGETS = batch(UNTIED)
CASES: dict[str, tuple[LLaMAConfig, dict[str, Any]]] = {
    "embedding": (UNTIED, {"modules_to_save": ["embed_tokens"]}),
    "embedding and head": (UNTIED, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "norms": (UNTIED, {"modules_to_save": ["norm"]}),
    "a linear": (UNTIED, {"modules_to_save": ["k_proj"]}),
    "a part with targets": (UNTIED, {"modules_to_save": ["1.mlp"]}),
    "tied, embedding": (TIED, {"modules_to_save": ["embed_tokens"]}),
    "tied, head": (TIED, {"modules_to_save": ["lm_head"]}),
    "tied, both apart": (TIED, {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "tied, both as one": (TIED, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "all biases": (BIASED, {"bias": "all"}),
    "biases of the targets": (BIASED, {"bias": "lora_only"}),
    "biases under DoRA": (BIASED, {"bias": "all", "use_dora": True}),
    "biases and modules": (BIASED, {"bias": "lora_only", "modules_to_save": ["lm_head", "norm"]}),
}
every_case = pytest.mark.parametrize("case", CASES)
LORA: dict[str, Any] = {"rank": 4, "alpha": 8.0, "target_modules": ["q_proj", "up_proj"]}


def trained(case: str, base: str = "fp32") -> LLaMAModel:
    """A model whose adapters, and what is trained beside them, changed its answers."""
    config, settings = CASES[case]
    model = base_model(base, config)
    LoRAConfig(**(LORA | settings)).apply(model)
    rng = np.random.default_rng(5)
    for _, tensor in model.trainable_parameters():
        tensor.numpy()[...] += rng.standard_normal(tensor.shape) * 0.1
    return model


def base_of(case: str, base: str = "fp32") -> dict[str, np.ndarray]:
    config, _ = CASES[case]
    return peers.base_arrays(base_model(base, config), config)


@pytest.mark.gradient
@pytest.mark.peers
@every_case
def test_logits_gradients_and_files_are_those_of_peft(case: str, tmp_path: Path) -> None:
    config, settings = CASES[case]
    model = trained(case)
    assert {n: t.shape for n, t in model.trainable_parameters()} == LoRAConfig(**(LORA | settings)).adapter_shapes(
        config
    )
    save_adapter(model, tmp_path / "adapter")
    base = peers.hf_base(tmp_path / "base", config, base_of(case))
    theirs = peers.peft_model(base, tmp_path / "adapter")
    expected = peers.logits(theirs, TOKENS)
    peers.assert_logits(model, TOKENS, expected)
    model.loss(TOKENS, TARGETS).backward()
    assert model.adapter_config is not None
    names = model.adapter_config.file_names(model)
    ours = {names.get(name, name): gradient for name, gradient in gradients_of(model).items()}
    peers.assert_close(ours, peers.gradients(theirs, TOKENS, TARGETS))

    theirs.save_pretrained(str(tmp_path / "again"))
    again = base_model(config=config)
    peers.assert_loads_merges_and_saves(again, tmp_path / "again", tmp_path, TOKENS, expected)


@pytest.mark.peers
@pytest.mark.parametrize("case", ["embedding and head", "tied, embedding", "tied, both as one", "biases and modules"])
def test_what_peft_makes_new_computes_the_same_here(case: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config, settings = CASES[case]
    made = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "up_proj"], **settings)
    theirs = peers.randomized(peers.peft_model(peers.hf_base(tmp_path / "base", config, random_arrays(config)), made))
    theirs.save_pretrained(str(tmp_path / "adapter"))
    model = LLaMAModel.from_pretrained(tmp_path / "base")
    load_adapter(model, tmp_path / "adapter")
    peers.assert_logits(model, TOKENS, peers.logits(theirs, TOKENS))


@pytest.mark.unit
@pytest.mark.parametrize("base", ["bf16", "nf4"])
def test_modules_of_a_frozen_type_are_trained_in_float32(base: str, tmp_path: Path) -> None:
    model = trained("a part with targets", base)
    assert weights_of(model)["model.layers.1.mlp.up_proj.weight"].dtype == np.float32
    assert dict(model.trainable_parameters())["model.layers.1.mlp.up_proj.weight"].dtype == "float32"
    save_adapter(model, tmp_path)
    again = base_model(base, UNTIED)
    load_adapter(again, tmp_path)
    np.testing.assert_array_equal(logits_of(again, TOKENS), logits_of(model, TOKENS))


@pytest.mark.unit
def test_the_base_that_others_hold_stays_as_it_was() -> None:
    model = base_model(config=TIED)
    table = model.model.embed_tokens.weight
    before = table.numpy().copy()
    LoRAConfig(**LORA, modules_to_save=["embed_tokens"]).apply(model)
    model.model.embed_tokens.weight.numpy()[...] += 1
    np.testing.assert_array_equal(table.numpy(), before)
    assert model.head_weight is table
    assert not model.config.tie_word_embeddings


@pytest.mark.unit
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules_to_save": ["classifier"]}, "lora.modules_to_save: 'classifier' matches no module of the model."),
        ({"modules_to_save": ["q_proj", "up_proj"]}, "No layer of the model matches target_modules"),
    ],
)
def test_what_the_model_does_not_have_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        LoRAConfig(**(LORA | settings)).apply(base_model(config=UNTIED))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"modules_to_save": [""]}, "lora.modules_to_save has an empty name; leave it out."),
        ({"bias": "some"}, "lora.bias is 'some'"),
        ({"bias": None}, "lora.bias is null, expected text."),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        LoRAConfig(**(LORA | settings))


@pytest.mark.unit
def test_a_file_without_the_module_or_with_another_is_refused(tmp_path: Path) -> None:
    save_adapter(trained("norms"), tmp_path)
    text = (tmp_path / "adapter_config.json").read_text()
    for changed, message in (
        ('"modules_to_save": null', r"layers\.0\.input_layernorm\.weight belongs to no layer"),
        ('"modules_to_save": ["lm_head"]', r"lm_head\.weight of shape \(97, 64\) is missing"),
    ):
        (tmp_path / "adapter_config.json").write_text(
            re.sub(r'"modules_to_save": \[\s*"norm"\s*\]', changed, text, flags=re.S)
        )
        with pytest.raises(FormatError, match=message):
            load_adapter(base_model(config=UNTIED), tmp_path)


@pytest.mark.unit
def test_a_trained_head_is_counted_where_a_step_is_planned() -> None:
    plain, head = LoRAConfig(**LORA), LoRAConfig(**LORA, modules_to_save=["lm_head"])
    size = UNTIED.vocab_size * UNTIED.hidden_size
    assert head.num_parameters(UNTIED) == plain.num_parameters(UNTIED) + size
    assert head.trains_logits(UNTIED)
    assert not plain.trains_logits(UNTIED)
    tied = LoRAConfig(**LORA, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    assert tied.trains_logits(TIED)
    assert not tied.trains_logits(UNTIED)
    items = [StepMemory(UNTIED, adapter=adapter).estimate(False).items for adapter in (plain, head)]
    assert items[1]["gradients"] - items[0]["gradients"] == 4 * size


@pytest.mark.unit
@every_case
def test_a_model_that_is_merged_while_it_is_written_has_the_trained_weights(case: str, tmp_path: Path) -> None:
    model = trained(case)
    expected = logits_of(model, TOKENS)
    model.save_pretrained(tmp_path, merge=True)
    peers.assert_logits(LLaMAModel.from_pretrained(tmp_path), TOKENS, expected)
