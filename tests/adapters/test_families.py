"""Adapters of every kind on models of other families: logits, files and merging beside PEFT's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.adapters.base import AdapterConfig, merge, set_training
from entrenar.llama import LLaMAModel
from entrenar.lora import DoRAConfig, IA3Config, LoRAConfig, PrefixConfig, load_adapter, save_adapter

from ..models.builders import relative_error
from .peers import logits, peft_model

FAMILIES = ("mistral, window", "qwen2, tied", "qwen3", "gemma2", "gemma3", "olmo2")
KINDS: dict[str, AdapterConfig] = {
    "lora": LoRAConfig(rank=3, target_modules=["all-linear"], bias="all", modules_to_save=["norm"]),
    "dora": DoRAConfig(rank=2, target_modules=["all-linear"], use_rslora=True),
    "ia3": IA3Config(target_modules=["all-linear"]),
    "prefix": PrefixConfig(num_virtual_tokens=5),
    "embedding": LoRAConfig(rank=3, target_modules=["embed_tokens", "v_proj"]),
    "both ends": LoRAConfig(rank=3, modules_to_save=["embed_tokens", "lm_head"]),
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
