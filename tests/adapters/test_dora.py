"""DoRA beside PEFT's: logits, gradients, files and merging on every base; dropout; its norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.adapters.base import adapter_layers, merge, set_training
from entrenar.adapters.dora import DoRAConfig
from entrenar.adapters.dora_linear import CHUNK, DoRALinear
from entrenar.adapters.peft import load_adapter, save_adapter
from entrenar.autograd import Tensor, linear, lora_linear, manual_seed
from entrenar.autograd.quantized import QuantizedTensor
from entrenar.errors import ConfigError
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig
from entrenar.nn.layers import Linear
from entrenar.qlora import QLoRAConfig

from ..models.builders import gradients_of, random_arrays, relative_error
from . import peers
from .reference import base_model, batch, gqa_config, logits_of

CONFIG = gqa_config(2)
TOKENS, TARGETS = batch(CONFIG)


def dora_model(base: str, **settings: Any) -> LLaMAModel:
    """A model with adapters that change its answers."""
    model = base_model(base, CONFIG)
    DoRAConfig(**({"rank": 4, "alpha": 8.0, "target_modules": ["all-linear"]} | settings)).apply(model)
    rng = np.random.default_rng(5)
    for name, tensor in model.trainable_parameters():
        tensor.numpy()[...] += rng.standard_normal(tensor.shape) * (0.3 if "magnitude" in name else 0.1)
    return model


@pytest.mark.gradient
@pytest.mark.peers
@pytest.mark.parametrize("base", ["fp32", "q4_1"])
def test_logits_gradients_files_and_merging_are_those_of_peft(base: str, tmp_path: Path) -> None:
    model = dora_model(base)
    save_adapter(model, tmp_path / "adapter")
    arrays = peers.base_arrays(model, CONFIG)
    theirs = peers.peft_model(peers.hf_base(tmp_path / "base", CONFIG, arrays), tmp_path / "adapter")
    expected = peers.logits(theirs, TOKENS)
    assert relative_error(expected, logits_of(base_model(base, CONFIG), TOKENS)) > 1e-2  # the adapter is really there
    np.testing.assert_allclose(logits_of(model, TOKENS), expected, rtol=0, atol=1e-4)
    model.loss(TOKENS, TARGETS).backward()
    peers.assert_close(gradients_of(model), peers.gradients(theirs, TOKENS, TARGETS))

    again = base_model(base, CONFIG)
    theirs.save_pretrained(str(tmp_path / "again"))
    load_adapter(again, tmp_path / "again")
    np.testing.assert_allclose(logits_of(again, TOKENS), expected, rtol=0, atol=1e-4)
    merge(again)
    np.testing.assert_allclose(logits_of(again, TOKENS), expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(peers.logits(theirs.merge_and_unload(), TOKENS), expected, rtol=0, atol=1e-4)


@pytest.mark.peers
def test_rslora_ranks_and_4_bits_go_with_it(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "down_proj"],
        use_dora=True,
        use_rslora=True,
        rank_pattern={"q_proj": 2},
        alpha_pattern={"down_proj": 3},
    )
    theirs = peers.peft_model(peers.hf_base(tmp_path / "base", CONFIG, random_arrays(CONFIG)), settings)
    peers.randomized(theirs).save_pretrained(str(tmp_path / "adapter"))
    model = base_model(config=CONFIG)
    load_adapter(model, tmp_path / "adapter")
    assert isinstance(model.adapter_config, LoRAConfig)
    assert model.adapter_config.use_dora
    np.testing.assert_allclose(logits_of(model, TOKENS), peers.logits(theirs, TOKENS), rtol=0, atol=1e-4)
    model = base_model(config=CONFIG)
    model.to_qlora(QLoRAConfig(rank=2, use_dora=True))
    assert all(isinstance(layer, DoRALinear) for _, layer in adapter_layers(model))


# ---------------------------------------------------------------------- the layer
def layer_of(shape: tuple[int, int], quantize: str | None = None, bias: bool = False, p: float = 0.0) -> DoRALinear:
    rng = np.random.default_rng(0)
    w = rng.standard_normal(shape).astype(np.float32)
    weight = Tensor(w) if quantize is None else QuantizedTensor.quantize(w, quantize)
    base = Linear(weight, Tensor(rng.standard_normal(shape[0]).astype(np.float32)) if bias else None)
    return DoRALinear(base, 3, 0.7, p, rng)


@pytest.mark.unit
def test_the_norms_are_those_of_the_rows_however_the_weight_is_stored_and_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("entrenar.adapters.dora_linear.CHUNK", 200)
    assert CHUNK > 200
    for quantize in (None, "nf4", "q8_0"):
        layer = layer_of((37, 64), quantize)
        np.testing.assert_array_equal(layer.magnitude.numpy(), layer.norms())
        np.testing.assert_allclose(layer.norms(), np.linalg.norm(layer.dequantized(), axis=1), rtol=1e-6)
        for scale in (0.1, 3.0):  # the second time, from other values
            layer.lora_B.numpy()[...] = np.random.default_rng(1).standard_normal((37, 3)) * scale
            update = np.float32(0.7) * layer.lora_B.numpy() @ layer.lora_A.numpy()
            np.testing.assert_allclose(
                layer.norms(), np.linalg.norm(layer.dequantized() + update, axis=1), rtol=2e-5, err_msg=str(quantize)
            )


@pytest.mark.unit
def test_a_new_adapter_changes_no_bit_and_a_bias_is_added_once() -> None:
    for bias in (False, True):
        layer = layer_of((5, 64), bias=bias)
        x = Tensor(np.random.default_rng(3).standard_normal((4, 64)).astype(np.float32))
        np.testing.assert_allclose(layer(x).numpy(), linear(x, layer.weight, layer.bias).numpy(), rtol=0, atol=1e-6)
        layer.lora_B.numpy()[...] = 0.5
        layer.magnitude.numpy()[...] *= 1.5
        np.testing.assert_allclose(layer(x).numpy(), layer.merged()(x).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.unit
def test_dropout_acts_on_what_is_scaled_and_on_the_update_as_in_peft() -> None:
    """base(x) + (m / |V| - 1) x' W^T + m / |V| * scaling x' (B A)^T with x' = dropout(x)."""
    layer = layer_of((5, 64), bias=True, p=0.4)
    layer.lora_B.numpy()[...] = 0.5
    layer.magnitude.numpy()[...] *= 1.5
    x = Tensor(np.random.default_rng(3).standard_normal((6, 64)).astype(np.float32))
    manual_seed(7)
    found = layer(x).numpy()
    manual_seed(7)
    dropped = layer.prepare(x)
    assert (dropped.numpy() == 0).mean() == pytest.approx(0.4, abs=0.1)
    scale = layer.magnitude.numpy() / layer.norms()
    base = linear(x, layer.weight, layer.bias).numpy()
    scaled = lora_linear(dropped, layer.weight, layer.lora_A, layer.lora_B, 0.7).numpy()
    expected = base + scale * scaled - linear(dropped, layer.weight).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    layer.training = False
    np.testing.assert_allclose(layer(x).numpy(), layer.merged()(x).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.unit
def test_its_section_is_for_it_alone_and_dropout_is_counted() -> None:
    with pytest.raises(ConfigError, match=r"dora\.use_dora is false, which makes it LoRA; leave it out"):
        DoRAConfig(use_dora=False)
    shape = gqa_config(2)
    plain, dropped = DoRAConfig(rank=2, target_modules=["o_proj"]), DoRAConfig(rank=2, dropout=0.1)
    assert plain.activation_floats(shape) == 2 + 64
    assert dropped.activation_floats(shape) > DoRAConfig(rank=2).activation_floats(shape)


@pytest.mark.unit
def test_dropout_is_off_where_a_model_is_evaluated() -> None:
    model = dora_model("fp32", dropout=0.5)
    set_training(model, True)
    trained = logits_of(model, TOKENS)
    set_training(model, False)
    evaluated = logits_of(model, TOKENS)
    np.testing.assert_array_equal(evaluated, logits_of(model, TOKENS))
    assert relative_error(trained, evaluated) > 1e-2


@pytest.mark.unit
def test_recomputed_layers_drop_the_same_and_give_the_same_gradients() -> None:
    found = []
    for checkpointing in (False, 1, True):
        model = dora_model("nf4", dropout=0.3)
        model.gradient_checkpointing = checkpointing
        manual_seed(3)
        model.loss(TOKENS, TARGETS).backward()
        found.append(gradients_of(model))
    for name, gradient in found[0].items():
        for other in found[1:]:
            np.testing.assert_array_equal(other[name], gradient, err_msg=name)
