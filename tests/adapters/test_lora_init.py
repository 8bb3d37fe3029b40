"""What LoRA begins with: PiSSA, LoftQ, orthogonal, gaussian; what of the base they take; what is saved."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.adapters.base import adapter_layers, merge
from entrenar.adapters.gguf import convert_adapter, load_gguf_adapter, save_gguf_adapter
from entrenar.adapters.lora import LoRAConfig
from entrenar.adapters.lora_init import start
from entrenar.adapters.lora_linear import LoRALinear
from entrenar.adapters.peft import load_adapter, read_adapter_config, save_adapter
from entrenar.autograd import Tensor
from entrenar.autograd.quantized import QuantizedTensor
from entrenar.errors import ConfigError
from entrenar.llama import LLaMAModel
from entrenar.nn.module import Weight
from entrenar.qlora import QLoRAConfig

from ..models.builders import random_arrays, relative_error, write_gguf, write_hf
from . import peers
from .reference import base_model, batch, gqa_config, logits_of

CONFIG = gqa_config(2)
TOKENS, _ = batch(CONFIG)
LORA: dict[str, Any] = {"rank": 4, "alpha": 8.0, "target_modules": ["q_proj", "down_proj"]}
W = np.random.default_rng(0).standard_normal((48, 64)).astype(np.float32)


def first(value: bool | str, weight: Weight, rank: int = 6, scaling: float = 0.5, iterations: int = 1) -> Any:
    original = W if isinstance(weight, QuantizedTensor) else None
    rng = np.random.default_rng(1)
    return start(value, weight, rank, scaling, rng, original=lambda: original, iterations=iterations)


def values(weight: Weight) -> np.ndarray:
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight.numpy().astype(np.float32)


def layers_of(model: LLaMAModel) -> list[LoRALinear]:
    return [layer for _, layer in adapter_layers(model) if isinstance(layer, LoRALinear)]


def trained(model: LLaMAModel, scale: float = 0.05) -> LLaMAModel:
    rng = np.random.default_rng(5)
    for _, tensor in model.trainable_parameters():
        tensor.numpy()[...] += rng.standard_normal(tensor.shape) * scale
    return model


# ---------------------------------------------------------------------- values
@pytest.mark.unit
def test_gaussian_and_orthogonal_change_nothing_at_first_and_are_as_large_as_pefts() -> None:
    begun = first("gaussian", Tensor(W))
    assert not begun.b.any()
    assert begun.a.std() == pytest.approx(1 / 6, rel=0.1)
    begun = first("orthogonal", Tensor(W))
    np.testing.assert_allclose(begun.b @ begun.a, 0, atol=1e-6)
    assert begun.a.std() / begun.b.std() == pytest.approx(1, rel=0.2)
    assert begun.a.std() == pytest.approx(np.sqrt(6 / 2 / 6) / 10, rel=0.2)
    assert begun.weight is None
    with pytest.raises(ConfigError, match="init_lora_weights is 'orthogonal', and a rank is 5; expected an even one"):
        first("orthogonal", Tensor(W), rank=5)


@pytest.mark.unit
@pytest.mark.parametrize("value", ["pissa", "pissa_niter_8"])
def test_pissa_takes_the_largest_singular_values_and_leaves_the_rest(value: str) -> None:
    begun = first(value, Tensor(W))
    np.testing.assert_allclose(begun.weight.numpy() + 0.5 * begun.b @ begun.a, W, atol=2e-6)
    singular = np.linalg.svd(W, compute_uv=False)
    tolerance = 1e-5 if value == "pissa" else 0.05
    np.testing.assert_allclose(
        np.linalg.svd(0.5 * begun.b @ begun.a, compute_uv=False)[:6], singular[:6], rtol=tolerance
    )
    np.testing.assert_allclose(np.linalg.norm(begun.a, axis=1), np.linalg.norm(begun.b, axis=0), rtol=1e-4)
    half = first(value, Tensor(W, dtype="bfloat16"))
    assert half.weight.dtype == "bfloat16"
    assert relative_error(values(half.weight) + 0.5 * half.b @ half.a, W) < 2.5e-3
    weight = QuantizedTensor.quantize(W, "nf4")
    taken = first(value, weight)
    assert taken.weight.dtype == "nf4"
    assert relative_error(values(taken.weight) + 0.5 * taken.b @ taken.a, W) < relative_error(values(weight), W)


@pytest.mark.unit
def test_loftq_repairs_the_error_of_four_bits_more_with_each_step() -> None:
    for weight_type in ("nf4", "int4"):
        weight = QuantizedTensor.quantize(W, weight_type)
        errors = [relative_error(values(weight), W)]
        for iterations in (1, 4):
            begun = first("loftq", weight, iterations=iterations)
            assert (begun.weight is None) == (iterations == 1)  # one step leaves the quantized values as they are
            now = weight if begun.weight is None else begun.weight
            assert now.weight_type == weight.weight_type
            errors.append(relative_error(values(now) + 0.5 * begun.b @ begun.a, W))
        assert errors[0] > errors[1] > errors[2], weight_type


@pytest.mark.peers
def test_one_step_of_loftq_is_pefts_where_the_scaling_is_one() -> None:
    torch = pytest.importorskip("torch")
    loftq_utils = pytest.importorskip("peft.utils.loftq_utils")
    weight = QuantizedTensor.quantize(W, "nf4", double_quantization=False)
    begun = first("loftq", weight, scaling=1.0)
    theirs = loftq_utils._low_rank_decomposition(torch.from_numpy(W - weight.dequantize()), 6)
    np.testing.assert_allclose(begun.b @ begun.a, (theirs["L"] @ theirs["R"]).numpy(), atol=1e-5)


# ---------------------------------------------------------------------- models
@pytest.mark.peers
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "rank_pattern": {"q_proj": 2}}, {"use_dora": True}])
def test_pissa_is_saved_as_an_update_of_the_base_as_it_was(settings: dict[str, Any], tmp_path: Path) -> None:
    model, plain = base_model(config=CONFIG), logits_of(base_model(config=CONFIG), TOKENS)
    LoRAConfig(**LORA, init_lora_weights="pissa", **settings).apply(model)
    np.testing.assert_allclose(logits_of(model, TOKENS), plain, rtol=0, atol=1e-4)
    expected = logits_of(trained(model), TOKENS)
    assert relative_error(expected, plain) > 1e-2
    save_adapter(model, tmp_path / "adapter")
    config = read_adapter_config(tmp_path / "adapter")
    assert isinstance(config, LoRAConfig)
    assert (config.rank, config.init_lora_weights) == (8, True)
    again = base_model(config=CONFIG)
    load_adapter(again, tmp_path / "adapter")
    np.testing.assert_allclose(logits_of(again, TOKENS), expected, rtol=0, atol=1e-4)
    theirs = peers.peft_model(peers.hf_base(tmp_path / "base", CONFIG, random_arrays(CONFIG)), tmp_path / "adapter")
    np.testing.assert_allclose(peers.logits(theirs, TOKENS), expected, rtol=0, atol=1e-4)
    merge(model)
    np.testing.assert_allclose(logits_of(model, TOKENS), expected, rtol=0, atol=1e-4)


@pytest.mark.peers
def test_an_adapter_of_pissa_that_peft_saved_unconverted_takes_its_part_here_too(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    made = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], init_lora_weights="pissa")
    theirs = peers.randomized(
        peers.peft_model(peers.hf_base(tmp_path / "base", CONFIG, random_arrays(CONFIG)), made), 0.05
    )
    theirs.save_pretrained(str(tmp_path / "adapter"))
    model = LLaMAModel.from_pretrained(tmp_path / "base")
    load_adapter(model, tmp_path / "adapter")
    np.testing.assert_allclose(logits_of(model, TOKENS), peers.logits(theirs, TOKENS), rtol=0, atol=1e-4)


@pytest.mark.unit
@pytest.mark.parametrize(("value", "iterations"), [("loftq", 1), ("loftq", 3), ("pissa", 1), ("pissa_niter_4", 1)])
def test_a_base_that_was_quantized_from_files_or_in_memory_is_repaired(
    value: str, iterations: int, tmp_path: Path
) -> None:
    write_hf(tmp_path, CONFIG, random_arrays(CONFIG))
    settings = LORA | {
        "rank": 16,
        "target_modules": ["all-linear"],
        "init_lora_weights": value,
        "loftq_iter": iterations,
    }
    full = logits_of(base_model(config=CONFIG), TOKENS)
    nf4 = LLaMAModel.from_pretrained(tmp_path, quantize="nf4")
    before = relative_error(logits_of(nf4, TOKENS), full)
    LoRAConfig(**settings).apply(nf4)
    found = logits_of(nf4, TOKENS)
    assert relative_error(found, full) < 0.8 * before
    assert bool(LoRAConfig(**settings).remarks(nf4)) == (value != "loftq" or iterations > 1)
    memory = base_model(config=CONFIG)
    QLoRAConfig(**settings).apply(memory)
    np.testing.assert_allclose(logits_of(memory, TOKENS), found, rtol=0, atol=1e-4)
    assert memory.originals is None
    if value == "loftq" and iterations == 1:  # over the same quantized values the adapter computes the same
        save_adapter(nf4, tmp_path / "adapter")
        other = LLaMAModel.from_pretrained(tmp_path, quantize="nf4")
        load_adapter(other, tmp_path / "adapter")
        np.testing.assert_array_equal(logits_of(other, TOKENS), found)


@pytest.mark.unit
@pytest.mark.parametrize("value", ["pissa", "loftq"])
def test_the_codes_of_a_gguf_file_are_not_changed_and_have_nothing_to_repair(value: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "base.gguf", CONFIG, random_arrays(CONFIG), lambda name: "Q4_0" if "proj" in name else "F32")
    model = LLaMAModel.from_pretrained(tmp_path / "base.gguf", quantize="auto")
    message = rf"init_lora_weights is '{value}', which needs the weights in full precision, and the base is q4_0 as its"
    with pytest.raises(ConfigError, match=message):
        LoRAConfig(**LORA, init_lora_weights=value).apply(model)
    assert model.adapter_config is None


@pytest.mark.unit
def test_loftq_over_full_precision_and_a_rank_above_the_singular_values_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"repairs the error of a base in 4 bits, and the base is float32; quantize it"
    ):
        LoRAConfig(**LORA, init_lora_weights="loftq").apply(base_model(config=CONFIG))
    with pytest.raises(ConfigError, match=r"rank 65 is above the 64 singular values of a weight of shape \(64, 64\)"):
        LoRAConfig(**(LORA | {"rank": 65}), init_lora_weights="pissa").apply(base_model(config=CONFIG))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"init_lora_weights": "eva"},
            "lora.init_lora_weights is 'eva', which chooses ranks and first values by activ",
        ),
        ({"init_lora_weights": "olora"}, "lora.init_lora_weights is 'olora', which takes a part of the base as PiSSA"),
        (
            {"init_lora_weights": "corda"},
            "lora.init_lora_weights is 'corda', which chooses first values by activations",
        ),
        ({"init_lora_weights": "pisa"}, "lora.init_lora_weights is 'pisa'; did you mean 'pissa'?"),
        ({"init_lora_weights": "pissa_niter_x"}, "lora.init_lora_weights is 'pissa_niter_x'; did you mean"),
        ({"init_lora_weights": False}, "lora.init_lora_weights is false, which begins with an update of noise;"),
        ({"init_lora_weights": 3}, "lora.init_lora_weights is 3, expected"),
        ({"loftq_iter": 2}, 'lora.loftq_iter is 2, which has no effect without init_lora_weights = "loftq"; leave'),
    ],
)
def test_a_setting_that_is_none_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        LoRAConfig(**settings)


@pytest.mark.unit
def test_the_seed_decides_the_first_values() -> None:
    drawn = []
    for seed in (0, 0, 1):
        model = base_model(config=CONFIG)
        LoRAConfig(**LORA, init_lora_weights="pissa_niter_2").apply(model, seed)
        drawn.append(np.concatenate([layer.lora_A.numpy().reshape(-1) for layer in layers_of(model)]))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])


@pytest.mark.unit
def test_an_adapter_of_pissa_as_a_gguf_file_is_one_for_the_base_as_it_was(tmp_path: Path) -> None:
    model = base_model(config=CONFIG)
    LoRAConfig(**LORA, init_lora_weights="pissa").apply(model)
    expected = logits_of(trained(model), TOKENS)
    save_gguf_adapter(model, tmp_path / "adapter.gguf")
    again = base_model(config=CONFIG)
    load_gguf_adapter(again, tmp_path / "adapter.gguf")
    np.testing.assert_allclose(logits_of(again, TOKENS), expected, rtol=0, atol=1e-4)
    save_adapter(model, tmp_path / "adapter")
    convert_adapter(tmp_path / "adapter", again.gguf_layout, tmp_path / "converted.gguf")
    other = base_model(config=CONFIG)
    load_gguf_adapter(other, tmp_path / "converted.gguf")
    np.testing.assert_array_equal(logits_of(other, TOKENS), logits_of(again, TOKENS))
