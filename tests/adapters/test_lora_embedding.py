"""LoRA on the embedding beside PEFT's: logits, gradients, files both ways, tied and untied, scaled, merged."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.adapters.gguf import convert_adapter, save_gguf_adapter
from entrenar.adapters.lora import LoRAConfig
from entrenar.adapters.lora_embedding import LoRAEmbedding
from entrenar.adapters.peft import load_adapter, save_adapter
from entrenar.autograd import Tensor
from entrenar.errors import ConfigError
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.nn.layers import Embedding
from entrenar.train import TrainConfig
from entrenar.train.config import Training

from ..models.builders import gradients_of, random_arrays
from . import peers
from .reference import base_model, batch, gqa_config

UNTIED = gqa_config(2)
TIED = dataclasses.replace(UNTIED, tie_word_embeddings=True)
TOKENS, TARGETS = batch(UNTIED)
LORA: dict[str, Any] = {"rank": 4, "alpha": 8.0, "target_modules": ["embed_tokens", "q_proj"]}
both = pytest.mark.parametrize("config", [UNTIED, TIED], ids=["untied", "tied"])


def embedded(config: LLaMAConfig, **settings: Any) -> LLaMAModel:
    model = base_model(config=config)
    LoRAConfig(**(LORA | settings)).apply(model)
    rng = np.random.default_rng(5)
    for _, tensor in model.trainable_parameters():
        tensor.numpy()[...] += rng.standard_normal(tensor.shape) * 0.1
    return model


@pytest.mark.gradient
@pytest.mark.peers
@both
def test_logits_gradients_files_and_merging_are_those_of_peft(config: LLaMAConfig, tmp_path: Path) -> None:
    model = embedded(config, rank_pattern={"embed_tokens": 2}, dropout=0.3)
    for _, module in model.named_modules():
        vars(module)["training"] = False
    assert {n: t.shape for n, t in model.trainable_parameters()} == model.adapter_config.adapter_shapes(config)
    save_adapter(model, tmp_path / "adapter")
    theirs = peers.peft_model(peers.hf_base(tmp_path / "base", config, random_arrays(config)), tmp_path / "adapter")
    expected = peers.logits(theirs, TOKENS)
    peers.assert_logits(model, TOKENS, expected)
    model.loss(TOKENS, TARGETS).backward()
    peers.assert_close(gradients_of(model), peers.gradients(theirs, TOKENS, TARGETS))

    theirs.save_pretrained(str(tmp_path / "again"))  # with the base's embedding beside the adapter
    again = base_model(config=config)
    peers.assert_loads_merges_and_saves(again, tmp_path / "again", tmp_path, TOKENS, expected)


@pytest.mark.peers
def test_what_peft_makes_new_computes_the_same_here(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    made = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=r".*(embed_tokens|v_proj)", use_rslora=True)
    theirs = peers.randomized(peers.peft_model(peers.hf_base(tmp_path / "base", UNTIED, random_arrays(UNTIED)), made))
    theirs.save_pretrained(str(tmp_path / "adapter"))
    model = LLaMAModel.from_pretrained(tmp_path / "base")
    load_adapter(model, tmp_path / "adapter")
    peers.assert_logits(model, TOKENS, peers.logits(theirs, TOKENS))


@pytest.mark.unit
def test_a_new_one_changes_nothing_and_a_scale_acts_on_both() -> None:
    rng = np.random.default_rng(0)
    table, tokens = rng.standard_normal((11, 6)).astype(np.float32), np.array([[3, 0, 3]])
    layer = LoRAEmbedding(Embedding(Tensor(table), scale=2.5), 2, 0.5, rng)
    np.testing.assert_array_equal(layer(tokens).numpy(), table[tokens] * np.float32(2.5))
    layer.lora_embedding_A.numpy()[...] = rng.standard_normal((2, 11))
    update = (layer.lora_embedding_B.numpy() @ layer.lora_embedding_A.numpy()).T
    np.testing.assert_allclose(layer(tokens).numpy(), 2.5 * (table + 0.5 * update)[tokens], rtol=1e-5)
    np.testing.assert_allclose(layer.merged()(tokens).numpy(), layer(tokens).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.unit
def test_what_it_does_not_go_with_is_refused(tmp_path: Path) -> None:
    for key in ("use_dora", "ensure_weight_tying"):
        with pytest.raises(
            ConfigError, match=rf"lora\.{key} is true, which is not supported beside an adapter on model"
        ):
            LoRAConfig(**LORA, **{key: True}).apply(base_model(config=UNTIED))
    model = embedded(TIED)
    with pytest.raises(ConfigError, match="embedding and head are one tensor of this model"):
        save_gguf_adapter(model, tmp_path / "a.gguf")
    save_adapter(model, tmp_path / "adapter")
    with pytest.raises(ConfigError, match="embedding and head are one tensor of this model"):
        convert_adapter(tmp_path / "adapter", base_model(config=TIED).gguf_layout, tmp_path / "a.gguf")


@pytest.mark.unit
def test_under_loraplus_it_learns_at_a_rate_of_its_own() -> None:
    config = LoRAConfig(**LORA)
    training = Training(learning_rate=0.5, loraplus_lr_ratio=4, loraplus_lr_embedding=0.125)
    optimizer = TrainConfig(training=training, adapter=config).make_optimizer(embedded(UNTIED).trainable_parameters())
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}
    assert {rate for name, rate in rates.items() if "embedding" in name} == {0.125}
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {2.0}
    with pytest.raises(ConfigError, match=r"training\.loraplus_lr_embedding is 0\.125, which has no effect without"):
        TrainConfig(training=Training(loraplus_lr_embedding=0.125), adapter=config)
