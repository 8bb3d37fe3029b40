"""Adapters across the border: ours in PEFT, PEFT's here, on the same weights with the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.adapters.targets import LINEARS
from entrenar.errors import ConfigError
from entrenar.llama import LLaMAModel
from entrenar.lora import load_adapter, merge, save_adapter, set_training

from ..models.builders import gguf_name, random_arrays, relative_error, write_gguf, write_hf
from .reference import base_model, batch, fill_adapters, gqa_config, logits_of, lora_model

CONFIG = gqa_config(3)
TOKENS = batch(CONFIG)[0]
pytestmark = pytest.mark.peers


@pytest.fixture(scope="module")
def base_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of base_model("fp32", CONFIG) as a Hugging Face directory."""
    directory = tmp_path_factory.mktemp("base")
    write_hf(directory, CONFIG, random_arrays(CONFIG))
    return directory


def hf_model(directory: Path, **options: Any) -> Any:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    return transformers.LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32, **options).eval()


def hf_logits(model: Any) -> np.ndarray:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.numpy()


def with_adapter(model: Any, directory: Path) -> Any:
    peft = pytest.importorskip("peft")
    return peft.PeftModel.from_pretrained(model, str(directory))


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True, "rank": 5, "alpha": 3.0},
        {"target_modules": ["q_proj", "v_proj"], "dropout": 0.3},
        {"rank": 1, "target_modules": ["down_proj"]},
    ],
    ids=["all linears", "rslora", "q and v with dropout", "rank 1"],
)
def test_peft_computes_the_same_logits_with_our_adapter(
    lora: dict[str, Any], base_directory: Path, tmp_path: Path
) -> None:
    model = lora_model("fp32", CONFIG, **lora)
    set_training(model, False)
    save_adapter(model, tmp_path / "adapter", base_model=str(base_directory))
    plain = hf_model(base_directory)
    without = hf_logits(plain)
    theirs = hf_logits(with_adapter(plain, tmp_path / "adapter"))
    assert relative_error(theirs, without) > 1e-2  # the adapter is really there
    np.testing.assert_allclose(logits_of(model, TOKENS), theirs, rtol=0, atol=1e-4)


def test_peft_finds_every_tensor_of_our_adapter_and_no_other(base_directory: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = lora_model("fp32", CONFIG)
    save_adapter(model, tmp_path / "adapter")
    wrapped = with_adapter(hf_model(base_directory), tmp_path / "adapter")
    stored = peft.load_peft_weights(str(tmp_path / "adapter"))
    expected = peft.get_peft_model_state_dict(wrapped)
    assert set(stored) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_array_equal(tensor.numpy(), stored[name].numpy(), err_msg=name)


PEFT_TARGETS: dict[str, Any] = {
    "list": ["q_proj", "v_proj", "gate_proj"],
    "dotted": ["self_attn.k_proj", "mlp.down_proj"],
    "all-linear": "all-linear",
}


def peft_adapter(base_directory: Path, directory: Path, **options: Any) -> Any:
    """An adapter that PEFT made, filled and saved, on its model."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    settings = peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, lora_dropout=0.1, **options)
    model = peft.get_peft_model(hf_model(base_directory), settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    model.save_pretrained(str(directory))
    return model.eval()


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("targets", PEFT_TARGETS)
def test_an_adapter_saved_by_peft_computes_the_same_here(
    targets: str, use_rslora: bool, base_directory: Path, tmp_path: Path
) -> None:
    theirs = peft_adapter(
        base_directory, tmp_path / "adapter", target_modules=PEFT_TARGETS[targets], use_rslora=use_rslora
    )
    model = LLaMAModel.from_pretrained(base_directory)
    load_adapter(model, tmp_path / "adapter")
    assert model.adapter_config is not None
    if targets == "all-linear":
        assert model.adapter_config.target_modules == list(LINEARS)
    expected = hf_logits(theirs)
    np.testing.assert_allclose(logits_of(model, TOKENS), expected, rtol=0, atol=1e-4)
    save_adapter(model, tmp_path / "again")  # and back
    np.testing.assert_allclose(
        hf_logits(with_adapter(hf_model(base_directory), tmp_path / "again")), expected, atol=1e-6
    )


def test_the_merged_model_equals_pefts_merged_model(base_directory: Path, tmp_path: Path) -> None:
    theirs = peft_adapter(base_directory, tmp_path / "adapter", target_modules="all-linear")
    model = LLaMAModel.from_pretrained(base_directory)
    load_adapter(model, tmp_path / "adapter")
    merge(model)
    model.save_pretrained(tmp_path / "merged")
    np.testing.assert_allclose(
        hf_logits(hf_model(tmp_path / "merged")), hf_logits(theirs.merge_and_unload()), atol=1e-4
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 2]]}, "layer_replication is"),
        ({"target_modules": ["q_proj"], "init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
        ({"target_modules": ["q_proj", "lm_head"]}, "'lm_head' is no linear of a decoder layer"),
    ],
)
def test_what_peft_saves_and_we_do_not_compute_is_refused(
    options: dict[str, Any], message: str, base_directory: Path, tmp_path: Path
) -> None:
    peft_adapter(base_directory, tmp_path / "adapter", **options)
    model = LLaMAModel.from_pretrained(base_directory)
    with pytest.raises(ConfigError, match=message):
        load_adapter(model, tmp_path / "adapter")
    assert model.adapter_config is None
    assert all(weight.requires_grad for _, weight in model.named_parameters())


@pytest.mark.parametrize("weight_type", ["Q4_0", "Q4_1"])
def test_an_adapter_over_the_quantized_values_of_a_gguf_file_computes_the_same_in_peft(
    weight_type: str, tmp_path: Path
) -> None:
    """The 4-bit base comes from a file that the gguf library wrote, PEFT's from what that library dequantizes."""
    arrays = random_arrays(CONFIG)
    top = {"token_embd.weight", "output.weight"}
    meaning = write_gguf(
        tmp_path / "base.gguf", CONFIG, arrays, lambda name: "F32" if gguf_name(name) in top else weight_type
    )
    write_hf(tmp_path / "dequantized", CONFIG, meaning)
    model = LLaMAModel.from_pretrained(tmp_path / "base.gguf", quantize="auto")
    weight_types = {weight.dtype for name, weight in model.named_parameters() if name.endswith("_proj.weight")}
    assert weight_types == {weight_type.lower()}
    config = lora_model("fp32", CONFIG).adapter_config
    assert config is not None
    model.to_lora(config)
    fill_adapters(model)
    save_adapter(model, tmp_path / "adapter")
    theirs = hf_logits(with_adapter(hf_model(tmp_path / "dequantized"), tmp_path / "adapter"))
    np.testing.assert_allclose(logits_of(model, TOKENS), theirs, rtol=0, atol=1e-3)


def test_an_adapter_over_nf4_computes_the_same_in_peft_over_bitsandbytes(base_directory: Path, tmp_path: Path) -> None:
    """Both quantize the same weights themselves; the quantized values are bit-equal, so the logits agree."""
    pytest.importorskip("bitsandbytes")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = lora_model("nf4 single", CONFIG)
    save_adapter(model, tmp_path / "adapter")
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=False,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["lm_head"],
    )
    theirs = hf_model(base_directory, quantization_config=settings, device_map="cpu")
    for module in theirs.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # there bitsandbytes multiplies in bfloat16 instead
            module.support_avx512bf16_for_cpu = False
    quantized, full = hf_logits(theirs), logits_of(base_model("fp32", CONFIG), TOKENS)
    assert relative_error(quantized, full) > 1e-2  # theirs is really in 4 bits
    np.testing.assert_allclose(logits_of(base_model("nf4 single", CONFIG), TOKENS), quantized, rtol=0, atol=1e-3)
    adapted = hf_logits(with_adapter(theirs, tmp_path / "adapter"))
    assert relative_error(adapted, quantized) > 1e-2
    np.testing.assert_allclose(logits_of(model, TOKENS), adapted, rtol=0, atol=1e-3)
