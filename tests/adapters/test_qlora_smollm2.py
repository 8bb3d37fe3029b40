"""QLoRA over the real checkpoint's own 4-bit values, beside PEFT on what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.llama import LLaMAModel
from entrenar.lora import save_adapter
from entrenar.qlora import QLoRAConfig

from .. import smollm2
from ..adapters.reference import fill_adapters, logits_of
from ..models.builders import relative_error, weights_of

TEXT = "The capital of France is Paris, which lies on the river Seine."


def hf_model(model: LLaMAModel) -> Any:
    """The same model in transformers, on the dequantized weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(model.config.to_hf())).eval()
    state = {name: torch.from_numpy(array) for name, array in weights_of(model).items() if ".lora_" not in name}
    missing = theirs.load_state_dict(state, strict=False)
    assert missing.unexpected_keys == []
    assert missing.missing_keys == ["lm_head.weight"]  # tied
    return theirs


@pytest.mark.peers
@pytest.mark.model
def test_an_adapter_over_the_files_own_values_computes_the_same_in_peft(tmp_path: Path) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    tokens = np.array([smollm2.tokenizer().encode(TEXT)])
    model = LLaMAModel.from_pretrained(smollm2.checkpoint(), quantize="auto")
    model.to_qlora(QLoRAConfig(rank=8, alpha=16.0, target_modules=["all-linear"]))
    weight_types = {name: weight.dtype for name, weight in model.named_parameters() if ".lora_" not in name}
    assert {weight_type for name, weight_type in weight_types.items() if name.endswith("_proj.weight")} == {"q4_1"}
    assert len([weight_type for weight_type in weight_types.values() if weight_type == "q4_1"]) == 210
    assert weight_types["model.embed_tokens.weight"] == "q8_0"
    base = logits_of(model, tokens)
    fill_adapters(model, scale=0.01)
    ours = logits_of(model, tokens)
    assert relative_error(ours, base) > 1e-2
    save_adapter(model, tmp_path / "adapter")
    theirs = peft.PeftModel.from_pretrained(hf_model(model), str(tmp_path / "adapter"))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-3)
