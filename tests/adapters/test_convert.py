"""to_qlora: the decoder linears in 4 bits, everything else as it was, one matrix at a time."""

from __future__ import annotations

import gc
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.adapters.base import adapter_layers
from entrenar.autograd import Tensor
from entrenar.autograd.quantized import QuantizedTensor
from entrenar.autograd.weight_types import WEIGHT_TYPES
from entrenar.errors import QuantizationError
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import load_adapter, merge, save_adapter
from entrenar.models.storage import StoragePolicy
from entrenar.nn.quantize import quantize_linears
from entrenar.qlora import QLoRAConfig

from ..adapters.reference import base_model, batch, fill_adapters, gqa_config, logits_of
from ..models.builders import random_arrays, random_model, relative_error, weights_of, write_gguf

CONFIG = gqa_config(2)
MIXED = gqa_config(2)  # its down_proj has rows that no block of 64 divides
MIXED.intermediate_size = 160
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def type_names(model: LLaMAModel) -> dict[str, str]:
    return {name: weight.dtype for name, weight in model.named_parameters() if ".lora_" not in name}


def is_decoder_linear(name: str) -> bool:
    return name.removesuffix(".weight").rsplit(".", 1)[-1] in LINEARS


@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "type_name", "double"),
    [
        ({}, "nf4", True),
        ({"quantize": "nf4"}, "nf4", True),
        ({"double_quantization": False}, "nf4", False),
        ({"quantize": "int4"}, "q4_1", False),
    ],
)
def test_only_the_linears_of_decoder_layers_become_4_bit(options: dict[str, Any], type_name: str, double: bool) -> None:
    model = base_model(config=CONFIG)
    before = weights_of(model)
    assert model.to_qlora(QLoRAConfig(rank=4, **options)) is model
    assert model.unquantized == {}
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            continue
        if not is_decoder_linear(name):
            assert isinstance(weight, Tensor), name
            np.testing.assert_array_equal(weight.numpy(), before[name], err_msg=name)
            continue
        assert isinstance(weight, QuantizedTensor), name
        assert (weight.weight_type, weight.double_quantized) == (type_name, double), name
        expected = QuantizedTensor.quantize(before[name], type_name, double_quantization=double)
        assert weight.quantized_values.tobytes() == expected.quantized_values.tobytes(), name
        assert relative_error(weight.dequantize(), before[name]) < 0.11, name
    assert [name for name, _ in adapter_layers(model)] == [
        f"model.layers.{i}.self_attn.{x}" for i in range(2) for x in ("q_proj", "v_proj")
    ]
    assert all(".lora_" in name for name, _ in model.trainable_parameters())


@pytest.mark.unit
def test_a_separate_head_stays_as_well() -> None:
    for tied in (False, True):
        config = gqa_config(1)
        config.tie_word_embeddings = tied
        model = base_model(config=config).to_qlora(QLoRAConfig(rank=2))
        found = type_names(model)
        assert found["model.embed_tokens.weight"] == "float32"
        assert found.get("lm_head.weight") == (None if tied else "float32")
        assert isinstance(model.head_weight, Tensor)


@pytest.mark.unit
def test_without_quantize_4bit_it_is_lora() -> None:
    model = base_model(config=CONFIG)
    before = weights_of(model)
    model.to_qlora(QLoRAConfig(rank=4, quantize_4bit=False))
    assert set(type_names(model).values()) == {"float32"}
    for name, weight in before.items():
        np.testing.assert_array_equal(weights_of(model)[name], weight)
    assert len(list(adapter_layers(model))) == 4


@pytest.mark.unit
def test_a_layer_whose_rows_no_block_divides_stays_and_is_reported() -> None:
    model = base_model(config=MIXED)
    model.to_qlora(QLoRAConfig(rank=2, target_modules=["all-linear"]))
    down = [f"model.layers.{i}.mlp.down_proj.weight" for i in range(2)]
    assert model.unquantized == dict.fromkeys(down, "its 160 columns are no multiple of 64")
    for name, type_name in type_names(model).items():
        assert type_name == ("nf4" if is_decoder_linear(name) and name not in down else "float32"), name
    assert not any(weight.requires_grad for name, weight in model.named_parameters() if name in down)
    int4 = base_model(config=MIXED).to_qlora(QLoRAConfig(rank=2, quantize="int4"))
    assert int4.unquantized == {}  # blocks of 32 do
    assert type_names(int4)[down[0]] == "q4_1"


@pytest.mark.unit
@pytest.mark.parametrize(
    "type_name", [row.gguf_name for row in WEIGHT_TYPES.values() if row.is_quantized and row.gguf_name]
)
def test_a_base_that_is_quantized_already_keeps_its_values(type_name: str, tmp_path: Path) -> None:
    row = WEIGHT_TYPES[type_name.lower()]
    wider = max(1, row.block_size // CONFIG.hidden_size)
    heads = CONFIG.num_attention_heads * wider
    config = replace(CONFIG, hidden_size=CONFIG.hidden_size * wider, num_attention_heads=heads)
    write_gguf(
        tmp_path / "base.gguf", config, random_arrays(config), lambda name: type_name if "attn" in name else "F16"
    )
    model = LLaMAModel.from_pretrained(tmp_path / "base.gguf", quantize="auto")
    before = {n: w.quantized_values.tobytes() for n, w in model.named_parameters() if isinstance(w, QuantizedTensor)}
    plain = LLaMAModel.from_pretrained(tmp_path / "base.gguf")
    assert set(type_names(plain).values()) == {"float32"}
    model.to_qlora(QLoRAConfig(rank=2))
    for name, weight in model.named_parameters():
        if isinstance(weight, QuantizedTensor):
            assert weight.weight_type == (type_name.lower() if "self_attn" in name else "nf4"), name
            assert weight.quantized_values.tobytes() == before[name]
    forced = LLaMAModel.from_pretrained(tmp_path / "base.gguf", quantize="auto").to_qlora(
        QLoRAConfig(2, quantize="nf4")
    )
    expected = row.name if row.bits == 4 else "nf4"
    assert type_names(forced)["model.layers.0.self_attn.q_proj.weight"] == expected


@pytest.mark.unit
def test_an_int16_base_becomes_4_bit(tmp_path: Path) -> None:
    base_model("fp32", gqa_config(2)).save_pretrained(tmp_path / "base")
    model = LLaMAModel.from_pretrained(tmp_path / "base", dtype="int16")
    name = "model.layers.1.mlp.up_proj.weight"
    before = dict(model.named_parameters())[name].dequantize()
    model.to_qlora(QLoRAConfig())
    after = dict(model.named_parameters())[name]
    assert after.weight_type == "nf4"
    np.testing.assert_array_equal(after.dequantize(), QuantizedTensor.quantize(before, "nf4").dequantize())


@pytest.mark.unit
def test_a_weight_that_is_no_number_is_named() -> None:
    model = base_model(config=CONFIG)
    model.model.layers[1].mlp.up_proj.weight.numpy()[3, 5] = np.nan
    with pytest.raises(QuantizationError, match=r"^model\.layers\.1\.mlp\.up_proj\.weight cannot become nf4: .*row 3"):
        model.to_qlora(QLoRAConfig(rank=2))
    assert not list(adapter_layers(model))


@pytest.mark.unit
def test_logits_and_gradients_of_a_qlora_model_are_those_of_lora_on_the_dequantized_base() -> None:
    model = base_model(config=CONFIG).to_qlora(QLoRAConfig(rank=4, alpha=8.0, target_modules=["all-linear"]))
    fill_adapters(model)
    values = weights_of(model)
    plain = LLaMAModel(CONFIG, weights=lambda name, shape: Tensor(values[name], requires_grad=True))
    assert model.adapter_config is not None
    plain.to_lora(model.adapter_config)
    for (_, ours), (_, theirs) in zip(adapter_layers(model), adapter_layers(plain), strict=True):
        theirs.lora_A.numpy()[...] = ours.lora_A.numpy()
        theirs.lora_B.numpy()[...] = ours.lora_B.numpy()
    tokens, targets = batch(CONFIG)
    np.testing.assert_allclose(logits_of(model, tokens), logits_of(plain, tokens), rtol=0, atol=1e-5)
    for each in (model, plain):
        each.loss(tokens, targets).backward()
    for (name, ours), (_, theirs) in zip(model.trainable_parameters(), plain.trainable_parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert relative_error(ours.grad.numpy(), theirs.grad.numpy()) < 1e-5, name


@pytest.mark.unit
@pytest.mark.parametrize("options", [{}, {"quantize": "int4"}, {"double_quantization": False}])
def test_a_qlora_adapter_is_saved_loaded_and_merged(options: dict[str, Any], tmp_path: Path) -> None:
    model = base_model(config=CONFIG).to_qlora(QLoRAConfig(rank=4, target_modules=["all-linear"], **options))
    fill_adapters(model)
    tokens, _ = batch(CONFIG)
    expected = logits_of(model, tokens)
    save_adapter(model, tmp_path / "adapter")
    again = base_model(config=CONFIG)
    settings = QLoRAConfig(**options)
    quantize_linears(again, settings.quantize, settings.double_quantization)
    load_adapter(again, tmp_path / "adapter")
    np.testing.assert_array_equal(logits_of(again, tokens), expected)
    merge(again)
    assert set(type_names(again).values()) == {"float32"}
    np.testing.assert_allclose(logits_of(again, tokens), expected, rtol=0, atol=1e-4)
    again.save_pretrained(tmp_path / "merged")
    reloaded = LLaMAModel.from_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(logits_of(reloaded, tokens), expected, rtol=0, atol=1e-4)


def square_config(layers: int, hidden: int) -> LLaMAConfig:
    """Every decoder linear has a multiple of 256 x 64 weights: no group of scales is short."""
    return LLaMAConfig(
        vocab_size=64,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=32,
    )


def planned(config: LLaMAConfig, quantize: str) -> int:
    """Bytes of the weights before there is a model."""
    return StoragePolicy(quantize=quantize).storage(config.parameter_shapes()).nbytes


@pytest.mark.memory
@pytest.mark.parametrize(
    ("options", "bytes_a_weight"),
    [
        ({}, 0.5 + (1 + 4 / 256) / 64),
        ({"double_quantization": False}, 0.5 + 4 / 64),
        ({"quantize": "int4"}, 0.5 + 4 / 32),
    ],
)
def test_a_4_bit_weight_takes_the_bytes_that_were_computed(options: dict[str, Any], bytes_a_weight: float) -> None:
    config = square_config(1, 128)
    model = random_model(config).to_qlora(QLoRAConfig(rank=1, **options))
    weights = dict(model.named_parameters())
    quantized = [weight for weight in weights.values() if isinstance(weight, QuantizedTensor)]
    assert len(quantized) == 7
    for weight in quantized:
        assert weight.nbytes == weight.size * bytes_a_weight
    if options.get("double_quantization", True):
        total = 0
        for name, weight in weights.items():
            total += 0 if ".lora_" in name else weight.nbytes
        assert total == planned(config, options.get("quantize", "nf4"))


@pytest.mark.memory
def test_conversion_frees_each_full_precision_matrix_before_the_next() -> None:
    config = square_config(6, 512)
    rest = 4 * (config.num_parameters() - config.num_decoder_linear_parameters())
    four_bit = planned(config, "nf4") - rest
    full = 4 * config.num_decoder_linear_parameters()
    largest = 2 * 512 * 512
    slack = 500_000  # Python's own objects
    LLaMAModel(square_config(1, 128)).to_qlora(QLoRAConfig(rank=1))  # what is imported on first use is no weight
    tracemalloc.start()
    try:
        model = LLaMAModel(config)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        model.to_qlora(QLoRAConfig(rank=1, target_modules=["q_proj"]))
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held >= full + rest
    assert peak - held < largest + slack < four_bit / 4  # never more than one matrix in both forms
    assert left < rest + four_bit + slack < full / 4
