"""Gradients of A and B through a whole model, against PyTorch float64 on the very weights that the base holds."""

from __future__ import annotations

import numpy as np
import pytest

from entrenar.adapters.base import adapter_layers
from entrenar.autograd import Tensor, lora_linear, manual_seed, sum
from entrenar.lora import LoRAConfig

from ..models.builders import gradients_of, relative_error
from .reference import BASES, TorchLLaMA, base_model, base_weight, batch, fill_adapters, logits_of, lora_model

TOLERANCE = 1e-4


@pytest.mark.gradient
@pytest.mark.peers
@pytest.mark.parametrize("base", BASES)
def test_gradients_of_every_adapter_agree_with_pytorch_float64(base: str) -> None:
    pytest.importorskip("torch")
    model = lora_model(base)
    tokens, targets = batch(model.config)
    loss = model.loss(tokens, targets)
    loss.backward()
    expected_loss, expected = TorchLLaMA(model).gradients(tokens, targets)
    ours = gradients_of(model)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-5)
    assert set(ours) == set(expected)
    assert len(ours) == 4 * 7 * 2  # layers, linears, A and B
    for name, gradient in expected.items():
        assert np.linalg.norm(gradient) > 0, name
        assert relative_error(ours[name], gradient) < TOLERANCE, name


@pytest.mark.gradient
@pytest.mark.peers
@pytest.mark.parametrize(("use_rslora", "targets"), [(True, ["all-linear"]), (False, ["q_proj", "v_proj"])])
def test_gradients_agree_for_other_scalings_and_targets(use_rslora: bool, targets: list[str]) -> None:
    pytest.importorskip("torch")
    model = lora_model("nf4", rank=3, alpha=5.0, use_rslora=use_rslora, target_modules=targets)
    tokens, wanted = batch(model.config)
    model.loss(tokens, wanted).backward()
    _, expected = TorchLLaMA(model).gradients(tokens, wanted)
    ours = gradients_of(model)
    assert set(ours) == set(expected)
    for name, gradient in expected.items():
        assert relative_error(ours[name], gradient) < TOLERANCE, name


@pytest.mark.gradient
@pytest.mark.peers
def test_logits_agree_with_pytorch_float64() -> None:
    pytest.importorskip("torch")
    for base in ("fp32", "q4_1"):
        model = lora_model(base)
        tokens, _ = batch(model.config)
        expected = TorchLLaMA(model).logits(tokens).detach().numpy()
        np.testing.assert_allclose(logits_of(model, tokens), expected, atol=1e-4)


@pytest.mark.gradient
def test_recomputed_layers_give_the_same_gradients() -> None:
    model = lora_model("nf4", dropout=0.3)
    tokens, targets = batch(model.config)
    kept = []
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        manual_seed(5)
        model.loss(tokens, targets).backward()
        kept.append(gradients_of(model))
        for tensor in dict(model.trainable_parameters()).values():
            tensor.grad = None
    for name, gradient in kept[0].items():
        np.testing.assert_array_equal(kept[1][name], gradient, err_msg=name)


@pytest.mark.gradient
@pytest.mark.parametrize("base", ["fp32", "bf16", "nf4", "q4_1"])
def test_dropout_uses_one_mask_in_forward_and_backward(base: str, tier: str) -> None:
    """Ones through an identity adapter show the mask; the explicit formula with it gives output and gradients."""
    rng = np.random.default_rng(0)
    m, k, n, rank, scaling, dropout = 40, 64, 48, 4, 1.5, 0.4
    eye = np.eye(k, dtype=np.float32)
    manual_seed(9)
    mask = lora_linear(np.ones((m, k), np.float32), 0 * eye, eye, eye, 1.0, dropout).numpy().astype(np.float64)
    assert set(np.unique(mask)) == {0.0, float(np.float32(1) / np.float32(1 - dropout))}
    assert abs((mask == 0).mean() - dropout) < 0.05
    weight = base_weight("model.layers.0.w", rng.standard_normal((n, k)).astype(np.float32), base)
    plain = weight.numpy() if isinstance(weight, Tensor) else weight.dequantize()
    w = plain.astype(np.float64)
    x, a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((m, k), (rank, k), (n, rank)))
    r = rng.standard_normal((m, n)).astype(np.float32)
    inputs = [Tensor(value, requires_grad=True) for value in (x, a, b)]
    manual_seed(9)
    y = lora_linear(inputs[0], weight, inputs[1], inputs[2], scaling, dropout)
    sum(y * r).backward()
    dropped, dy = x * mask, r.astype(np.float64)
    expected_y = x @ w.T + scaling * (dropped @ a.T) @ b.T
    g = scaling * dy @ b
    expected = [dy @ w + (g @ a) * mask, g.T @ dropped, scaling * dy.T @ (dropped @ a.T)]
    assert relative_error(y.numpy(), expected_y) < 1e-6
    for tensor, gradient in zip(inputs, expected, strict=True):
        assert tensor.grad is not None
        assert relative_error(tensor.grad.numpy(), gradient) < 1e-6


@pytest.mark.gradient
def test_a_gets_no_gradient_and_b_one_where_the_adapter_is_new() -> None:
    model = base_model()
    model.to_lora(LoRAConfig(rank=4, alpha=8.0, target_modules=["all-linear"]))
    tokens, targets = batch(model.config)
    model.loss(tokens, targets).backward()
    for name, layer in adapter_layers(model):
        assert layer.lora_A.grad is not None, name
        assert layer.lora_B.grad is not None, name
        assert not layer.lora_A.grad.numpy().any(), name
        assert layer.lora_B.grad.numpy().any(), name
    fill_adapters(model)
    model.loss(tokens, targets).backward()
    assert all(layer.lora_A.grad.numpy().any() for _, layer in adapter_layers(model) if layer.lora_A.grad is not None)
