"""What an adapter does to a model: nothing when new, a scaled low-rank update later; the base never moves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from entrenar.adapters.base import adapter_layers
from entrenar.adapters.lora import LoRALinear
from entrenar.autograd import Tensor, manual_seed
from entrenar.autograd.quantized import QuantizedTensor
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig, merge, set_training
from entrenar.nn.layers import Linear
from entrenar.optim import AdamW

from ..models.builders import relative_error, weights_of
from .reference import BASES, base_model, batch, fill_adapters, gqa_config, logits_of, lora_model


def base_bytes(model: LLaMAModel) -> dict[str, bytes]:
    """The stored bytes of every weight that is no adapter."""
    stored = {}
    for name, weight in model.named_parameters():
        if ".lora_" not in name:
            arrays = weight.to_arrays().values() if isinstance(weight, QuantizedTensor) else [weight.numpy()]
            stored[name] = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    return stored


@pytest.mark.unit
@pytest.mark.parametrize("base", BASES)
def test_a_new_adapter_changes_nothing(base: str) -> None:
    model = base_model(base)
    tokens, _ = batch(model.config)
    before = logits_of(model, tokens)
    model.to_lora(LoRAConfig(rank=4, target_modules=["all-linear"]))
    np.testing.assert_array_equal(logits_of(model, tokens), before)
    fill_adapters(model)
    assert relative_error(logits_of(model, tokens), before) > 1e-2  # and one that is trained does


@pytest.mark.unit
def test_a_is_kaiming_uniform_and_b_is_zero() -> None:
    model = base_model(config=gqa_config(2))
    model.to_lora(LoRAConfig(rank=32, target_modules=["all-linear"]))
    for name, layer in adapter_layers(model):
        bound = 1 / math.sqrt(layer.in_features)
        a = layer.lora_A.numpy()
        assert a.shape == (32, layer.in_features), name
        assert layer.lora_B.shape == (layer.out_features, 32), name
        assert not layer.lora_B.numpy().any(), name
        assert np.abs(a).max() <= bound, name
        assert np.abs(a).max() > 0.99 * bound, name
        assert abs(a.mean()) < 0.05 * bound, name
        assert a.std() == pytest.approx(bound / math.sqrt(3), rel=0.05), name
    firsts = [layer.lora_A.numpy()[0, :4].tolist() for _, layer in adapter_layers(model)]
    assert len({tuple(first) for first in firsts}) == len(firsts)  # no two layers begin alike


@pytest.mark.unit
def test_the_seed_decides_the_initial_a() -> None:
    drawn = []
    for seed in (0, 0, 1):
        model = base_model(config=gqa_config(1))
        LoRAConfig(rank=2).apply(model, seed)
        drawn.append(b"".join(layer.lora_A.numpy().tobytes() for _, layer in adapter_layers(model)))
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


@pytest.mark.unit
@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_update_is_scaled_by_alpha_over_rank_or_its_root(use_rslora: bool) -> None:
    rng = np.random.default_rng(0)
    config = LoRAConfig(rank=4, alpha=6.0, use_rslora=use_rslora)
    assert config.scaling == (3.0 if use_rslora else 1.5)
    w = rng.standard_normal((5, 8)).astype(np.float32)
    layer = LoRALinear(Linear(Tensor(w)), config.rank, config.scaling, 0.0, rng)
    layer.lora_B.numpy()[...] = rng.standard_normal((5, 4))
    x = rng.standard_normal((3, 8)).astype(np.float32)
    effective = w + config.scaling * layer.lora_B.numpy() @ layer.lora_A.numpy()
    np.testing.assert_allclose(layer(Tensor(x)).numpy(), x @ effective.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(layer.merged().weight.numpy(), effective, rtol=1e-6, atol=1e-6)


@pytest.mark.unit
def test_dropout_acts_only_in_training() -> None:
    model = lora_model("nf4", dropout=0.5)
    plain = lora_model("nf4", dropout=0.0)
    tokens, _ = batch(model.config)
    expected = logits_of(plain, tokens)
    manual_seed(1)
    first, second = logits_of(model, tokens), logits_of(model, tokens)
    assert relative_error(first, expected) > 1e-2
    assert relative_error(second, first) > 1e-2  # another mask each time
    manual_seed(1)
    np.testing.assert_array_equal(logits_of(model, tokens), first)
    set_training(model, False)
    np.testing.assert_array_equal(logits_of(model, tokens), expected)
    set_training(model, True)
    assert relative_error(logits_of(model, tokens), expected) > 1e-2


@pytest.mark.unit
def test_dropout_keeps_the_expected_output() -> None:
    rng = np.random.default_rng(0)
    layer = LoRALinear(Linear(Tensor(np.zeros((1, 4096), np.float32))), 1, 1.0, 0.3, rng)
    layer.lora_A.numpy()[...] = 1 / 4096
    layer.lora_B.numpy()[...] = 1
    manual_seed(0)
    out = layer(Tensor(np.ones((200, 4096), np.float32))).numpy()
    assert out.std() > 0
    assert out.mean() == pytest.approx(1.0, abs=0.005)


@pytest.mark.unit
@pytest.mark.parametrize("base", BASES)
def test_training_moves_adapters_and_never_the_base(base: str) -> None:
    model = base_model(base, gqa_config(2))
    model.to_lora(LoRAConfig(rank=4, target_modules=["q_proj", "down_proj"]))
    before = base_bytes(model)
    adapters = {name: tensor.numpy().copy() for name, tensor in model.trainable_parameters()}
    optimizer = AdamW(model.trainable_parameters(), lr=1e-2, weight_decay=0.1)
    tokens, targets = batch(model.config)
    losses = []
    for _ in range(4):
        loss = model.loss(tokens, targets)
        loss.backward()
        for name, weight in model.named_parameters():
            if ".lora_" not in name:
                assert not weight.requires_grad, name
                assert getattr(weight, "grad", None) is None, name
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert base_bytes(model) == before
    assert losses[-1] < losses[0]
    assert len(adapters) == 2 * 2 * 2
    for name, tensor in model.trainable_parameters():
        assert (tensor.numpy() != adapters[name]).any(), name


@pytest.mark.unit
def test_only_the_named_linears_get_adapters() -> None:
    model = base_model(config=gqa_config(2))
    names = [name for name, _ in model.named_parameters()]
    model.to_lora(LoRAConfig(rank=2, target_modules=["v_proj", "gate_proj"]))
    assert [name for name, _ in model.named_parameters() if ".lora_" not in name] == names
    expected = {
        f"model.layers.{i}.{layer}.lora_{side}.weight"
        for i in range(2)
        for layer in ("self_attn.v_proj", "mlp.gate_proj")
        for side in "AB"
    }
    assert {name for name, _ in model.trainable_parameters()} == expected
    total = 0
    for _, tensor in model.trainable_parameters():
        total += tensor.size
    assert model.adapter_config is not None
    assert total == model.adapter_config.num_parameters(model.config)


@pytest.mark.unit
@pytest.mark.parametrize("base", BASES)
def test_the_merged_model_answers_like_the_adapted_one(base: str) -> None:
    model = lora_model(base, dropout=0.2)
    set_training(model, False)
    tokens, _ = batch(model.config)
    adapted = logits_of(model, tokens)
    names = [name for name, _ in model.named_parameters() if ".lora_" not in name]
    merge(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert not list(adapter_layers(model))
    np.testing.assert_allclose(logits_of(model, tokens), adapted, rtol=0, atol=1e-4)


@pytest.mark.unit
def test_merging_adds_the_update_to_the_dequantized_weights_and_to_nothing_else() -> None:
    model = lora_model("nf4", target_modules=["k_proj"])
    before = weights_of(model)
    merge(model)
    after = weights_of(model)
    for name, weight in after.items():
        expected = before[name]
        if name.endswith("k_proj.weight"):
            a, b = (before[name.replace(".weight", f".lora_{side}.weight")] for side in "AB")
            expected = expected + np.float32(2) * (b @ a)  # alpha 8, rank 4
        np.testing.assert_allclose(weight, expected, rtol=1e-6, atol=1e-7, err_msg=name)
    merged_again = model.to_lora(LoRAConfig(rank=2))  # a merged model takes new adapters
    assert len(list(adapter_layers(merged_again))) == 8
