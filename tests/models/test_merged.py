"""Models under adapters of every kind, merged a matrix at a time into each format, compute what they computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.adapters.dora import DoRAConfig
from entrenar.adapters.ia3 import IA3Config
from entrenar.adapters.prefix import PrefixConfig
from entrenar.autograd import no_grad
from entrenar.errors import ConfigError
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig

from .builders import random_model, random_tokens, small_config

KINDS: dict[str, Any] = {
    "lora": LoRAConfig(rank=2, target_modules=["all-linear"]),
    "patterns": LoRAConfig(rank=4, target_modules=["q_proj", "v_proj"], rank_pattern={"q_proj": 2}, use_rslora=True),
    "embedding": LoRAConfig(rank=2, target_modules=["embed_tokens", "o_proj"]),
    "embedding and head": LoRAConfig(rank=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    "one weight for both": LoRAConfig(
        rank=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True
    ),
    "biases": LoRAConfig(rank=2, target_modules=["q_proj", "v_proj"], bias="lora_only"),
    "dora": DoRAConfig(rank=2, target_modules=["q_proj", "down_proj"]),
    "ia3": IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


CASES = [
    (kind, family, tied)
    for kind in KINDS
    for family in ("llama", "qwen2")
    for tied in (False, True)
    if (tied or kind != "one weight for both") and (family != "llama" or kind != "biases")
]


@pytest.mark.unit
@pytest.mark.parametrize(("kind", "family", "tied"), CASES)
def test_every_kind_is_merged_as_it_is_written(kind: str, family: str, tied: bool, tmp_path: Path) -> None:
    model = random_model(small_config(family=family, tie_word_embeddings=tied))
    KINDS[kind].apply(model)
    for number, (_, weight) in enumerate(model.trainable_parameters()):
        weight.numpy()[...] += 0.05 * np.random.default_rng(number).standard_normal(weight.shape).astype(np.float32)
    tokens = random_tokens(model.config, 2, 20)
    with no_grad():
        expected = model(tokens).numpy()
        model.save_gguf(tmp_path / "x.gguf", merge=True)
        model.save_pretrained(tmp_path / "hf", merge=True)
        np.testing.assert_array_equal(model(tokens).numpy(), expected)  # it is as it was
        for name in ("x.gguf", "hf"):
            found = LLaMAModel.from_pretrained(tmp_path / name)
            np.testing.assert_allclose(found(tokens).numpy(), expected, rtol=0, atol=2e-4, err_msg=name)


@pytest.mark.unit
def test_a_prefix_is_refused(tmp_path: Path) -> None:
    model = random_model()
    PrefixConfig().apply(model)
    for write in (model.save_gguf, model.save_pretrained):
        with pytest.raises(ConfigError, match=r"is no change of weights and cannot be merged; run it in"):
            write(tmp_path / "x", merge=True)
    assert not list(tmp_path.iterdir())
