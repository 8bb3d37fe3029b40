"""GGUF files whose linears have a weight type of the table: kept by quantize="auto", with the bits of their values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from entrenar.autograd import QuantizedTensor, no_grad
from entrenar.autograd.weight_types import WEIGHT_TYPES
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig
from tests.edges.gguf_models import PROMPTS, VOCABULARY, peers_log_probabilities, write_model
from tests.edges.llama_cpp import log_softmax

from .builders import random_arrays, small_config

CONFIG = small_config(vocab_size=VOCABULARY, hidden_size=256, intermediate_size=256, num_hidden_layers=1)
TYPES = [row.gguf_name for row in WEIGHT_TYPES.values() if row.is_quantized and row.gguf_name is not None]
every_type = pytest.mark.parametrize("weight_type", TYPES)


def file_of(weight_type: str, folder: Path) -> Path:
    """A model whose decoder linears have this type."""
    return write_model(
        folder / "model.gguf",
        config=CONFIG,
        weights=random_arrays(CONFIG, std=0.05),
        type_name=lambda name: weight_type if name.endswith("_proj.weight") else "F32",
    )


@pytest.mark.unit
@every_type
def test_values_of_the_file_give_the_bits_of_their_float32_copy(weight_type: str, tmp_path: Path) -> None:
    path = file_of(weight_type, tmp_path)
    tokens = np.array([PROMPTS[2]])
    found = []
    for quantize in ("auto", None):
        model = LLaMAModel.from_pretrained(path, quantize=quantize)
        linears = [weight for name, weight in model.named_parameters() if name.endswith("_proj.weight")]
        assert all(isinstance(weight, QuantizedTensor) for weight in linears) == (quantize == "auto")
        assert not any("requantized" in remark for remark in model.remarks)
        model.to_lora(LoRAConfig(rank=2, target_modules=["all-linear"]))
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        found.append((loss.item(), [w.grad.numpy().tobytes() for _, w in model.trainable_parameters()]))
    assert found[0] == found[1]


@pytest.mark.peers
@every_type
def test_llama_cpp_agrees(weight_type: str, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    path = file_of(weight_type, tmp_path)
    model = LLaMAModel.from_pretrained(path, quantize="auto")
    with no_grad():
        ours = [log_softmax(model(np.array([prompt])).numpy()[0, -1]) for prompt in PROMPTS]
    # llama.cpp rounds what such weights are multiplied with to 8 bits
    np.testing.assert_allclose(ours, peers_log_probabilities(path), rtol=0, atol=0.1)
