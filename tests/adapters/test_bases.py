"""Every kind of adapter on every sort of base beside PEFT's on the same weights in full precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from entrenar.adapters.base import AdapterConfig, merge, set_training
from entrenar.adapters.peft import load_adapter, save_adapter
from entrenar.adapters.prefix import FILE_NAME, PrefixConfig
from entrenar.lora import DoRAConfig, IA3Config, LoRAConfig

from ..models.builders import gradients_of, relative_error, small_config
from . import peers
from .reference import base_model, batch, logits_of

# rows that are multiples of the 256 values of a block of Q4_K
CONFIG = small_config(hidden_size=256, intermediate_size=512, num_hidden_layers=2, vocab_size=97)
TOKENS, TARGETS = batch(CONFIG)
BASES = ("fp32", "bf16", "nf4", "q4_k")
KINDS: dict[str, AdapterConfig] = {
    "lora": LoRAConfig(rank=5, alpha=7.0, target_modules=["all-linear"], use_rslora=True),
    "lora and whole modules": LoRAConfig(
        rank=5, target_modules=["embed_tokens", "o_proj"], modules_to_save=["norm", "1.mlp"]
    ),
    "dora": DoRAConfig(rank=5, alpha=7.0, target_modules=["all-linear"]),
    "ia3": IA3Config(target_modules=["all-linear"]),
    "prefix": PrefixConfig(num_virtual_tokens=3),
}


@pytest.mark.gradient
@pytest.mark.peers
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_gradients_files_and_merging_are_those_of_peft(kind: str, base: str, tmp_path: Path) -> None:
    model = base_model(base, CONFIG)
    plain = logits_of(model, TOKENS)
    arrays = peers.base_arrays(model, CONFIG)
    KINDS[kind].apply(model)
    rng = np.random.default_rng(5)
    for _, tensor in model.trainable_parameters():
        tensor.numpy()[...] += rng.standard_normal(tensor.shape) * 0.05
    set_training(model, False)
    save_adapter(model, tmp_path / "adapter")
    theirs = peers.peft_model(peers.hf_base(tmp_path / "base", CONFIG, arrays), tmp_path / "adapter", trainable=False)
    for name, parameter in theirs.named_parameters():
        parameter.requires_grad_(any(part in name for part in ("lora_", "ia3_", "modules_to_save", "prompt_encoder")))
    expected = peers.logits(theirs, TOKENS)
    assert relative_error(expected, plain) > 1e-2  # the adapter is really there
    assert relative_error(logits_of(model, TOKENS), expected) < 1e-4

    model.loss(TOKENS, TARGETS).backward()
    ours, gradients = gradients_of(model), peers.gradients(theirs, TOKENS, TARGETS)
    if kind == "prefix":
        ours = {FILE_NAME: np.concatenate([ours[name] for name in KINDS[kind].adapter_shapes(CONFIG)], axis=1)}
        gradients = {FILE_NAME: next(iter(gradients.values()))}
    peers.assert_close(ours, gradients)

    theirs.save_pretrained(str(tmp_path / "again"))
    again = base_model(base, CONFIG)
    load_adapter(again, tmp_path / "again")
    assert relative_error(logits_of(again, TOKENS), expected) < 1e-4
    if kind != "prefix":
        merge(again)
        assert relative_error(logits_of(again, TOKENS), expected) < 1e-4
