"""Adapters of every kind on models of other families: logits, files and merging beside PEFT's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.adapters.base import AdapterConfig, merge, set_training
from entrenar.errors import ConfigError
from entrenar.llama import LLaMAModel
from entrenar.lora import DoRAConfig, IA3Config, LoRAConfig, PrefixConfig, load_adapter, save_adapter

from ..models.builders import relative_error
from .peers import logits, peft_model

FAMILIES = ("mistral, window", "qwen2, tied", "gemma3", "olmo2", "smollm3", "phi3", "granite")
KINDS: dict[str, AdapterConfig] = {
    "lora": LoRAConfig(rank=3, target_modules=["all-linear"], bias="all", modules_to_save=["norm"]),
    "dora": DoRAConfig(rank=2, target_modules=["all-linear"], use_rslora=True),
    "ia3": IA3Config(target_modules=["all-linear"]),
    "prefix": PrefixConfig(num_virtual_tokens=5),
    "embedding": LoRAConfig(rank=3, target_modules=["embed_tokens", "o_proj"]),
    "both ends": LoRAConfig(rank=3, target_modules=["down_proj"], modules_to_save=["embed_tokens", "lm_head"]),
}


@pytest.mark.peers
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_computes_the_same_in_peft(kind: str, family: str, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from ..models.family_cases import bench_of

    bench = bench_of(family)
    model = LLaMAModel.from_pretrained(bench.folder / "hf")
    KINDS[kind].apply(model)
    rng = np.random.default_rng(5)
    for _, tensor in model.trainable_parameters():
        tensor.numpy()[...] += rng.standard_normal(tensor.shape) * 0.1
    set_training(model, False)
    save_adapter(model, tmp_path / "adapter")
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    plain = transformers.AutoModelForCausalLM.from_pretrained(bench.folder / "hf", **options).eval()
    expected = logits(peft_model(plain, tmp_path / "adapter", trainable=False), bench.tokens)
    before = bench.logits(bench.tokens)
    assert relative_error(expected, before) > 1e-2  # the adapter is really there
    assert relative_error(bench.logits(bench.tokens, model), expected) < 1e-4
    if kind == "prefix":
        return
    again = LLaMAModel.from_pretrained(bench.folder / "hf")
    load_adapter(again, tmp_path / "adapter")
    merge(again)
    assert relative_error(bench.logits(bench.tokens, again), expected) < 1e-4


@pytest.mark.peers
def test_linears_that_a_family_keeps_in_one_are_meant_together() -> None:
    from ..models.family_cases import bench_of

    folder = bench_of("phi3").folder / "hf"
    model = LLaMAModel.from_pretrained(folder)
    LoRAConfig(target_modules=["gate_proj", "up_proj", "down_proj"]).apply(model)
    assert model.adapter_config.target_modules == ["down_proj", "gate_up_proj"]
    assert {name.split(".")[-3] for name, _ in model.trainable_parameters()} == {"gate_up_proj", "down_proj"}
    with pytest.raises(ConfigError, match=r"'q_proj' matches no module of the model, which has qkv_proj\."):
        LoRAConfig(target_modules=["q_proj", "v_proj"]).apply(LLaMAModel.from_pretrained(folder))
