"""Families beside LLaMA: logits, gradients, files both ways and adapters against transformers, PEFT and llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.adapters.registry import KINDS
from entrenar.autograd import no_grad
from entrenar.errors import ConfigError, EntrenarError, FormatError
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import load_adapter, merge, save_adapter
from entrenar.models.families import ARCHITECTURES, FAMILIES

from .builders import (
    gradients_of,
    model_of,
    random_arrays,
    random_tokens,
    relative_error,
    small_config,
    weights_of,
    write_gguf,
    write_hf,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.peers

BASE: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, linear scaling": ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "qwen2, windows off": ("qwen2", {"sliding_window": 16, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3, tied, heads of their own size": ("qwen3", {"tie_word_embeddings": True, "head_dim": 40}),
    "qwen3, llama3 scaling": ("qwen3", {"head_dim": 32, "num_key_value_heads": 1, "rope_parameters": LLAMA3}),
}
every_shape = pytest.mark.parametrize(("model_type", "changes"), SHAPES.values(), ids=SHAPES.keys())
NEW = ["qwen2", "qwen3"]
every_family = pytest.mark.parametrize("model_type", NEW)


def peer_model(model_type: str, seed: int = 0, std: float = 0.15, **changes: Any) -> Any:
    """A transformers model whose weights, norms and biases included, are random."""
    config = transformers.AutoConfig.for_model(model_type, **(BASE | changes))
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = std * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + noise if name.endswith("norm.weight") else noise)
    return model.eval()


def peer_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(tokens)).logits.float().numpy())


def peer_of(directory: Path) -> Any:
    """A directory as transformers loads it; every weight must be in its files."""
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return model.eval()


def family_config(model_type: str, **changes: Any) -> LLaMAConfig:
    """A small model of the family, with a head size that is not hidden_size / num_attention_heads where it may be."""
    own = {"head_dim": 24} if model_type == "qwen3" else {}
    return small_config(family=model_type, hidden_size=64, intermediate_size=128, rms_norm_eps=1e-6, **(own | changes))


# ---------------------------------------------------------------------- against transformers
@every_shape
def test_logits_agree_with_transformers(model_type: str, changes: dict[str, Any], tmp_path: Path) -> None:
    peer = peer_model(model_type, **changes)
    peer.save_pretrained(tmp_path)
    ours = LLaMAModel.from_pretrained(tmp_path)
    assert ours.config.family == model_type and ours.remarks == []
    assert ours.config.num_parameters() == peer.num_parameters()
    tokens = random_tokens(ours.config, 2, 70)
    expected = peer_logits(peer, tokens)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(ours(tokens).numpy(), expected, rtol=0, atol=1e-4)


@pytest.mark.gradient
@every_shape
@pytest.mark.parametrize("checkpointing", [False, True], ids=["saved", "recomputed"])
def test_every_gradient_agrees_with_float64(
    checkpointing: bool, model_type: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    peer = peer_model(model_type, **changes)
    peer.save_pretrained(tmp_path)
    ours = LLaMAModel.from_pretrained(tmp_path)
    ours.gradient_checkpointing = checkpointing
    tokens, targets = random_tokens(ours.config, 2, 23), random_tokens(ours.config, 2, 23, seed=1)
    loss = ours.loss(tokens, targets)
    loss.backward()
    peer = peer.double()
    logits = peer(torch.from_numpy(tokens)).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())
    expected.backward()
    assert abs(loss.item() - expected.item()) < 1e-5
    theirs = {name: parameter.grad.numpy() for name, parameter in peer.named_parameters()}
    found = gradients_of(ours)
    assert found.keys() == theirs.keys()
    for name, gradient in found.items():
        assert relative_error(gradient, theirs[name]) < 1e-4 or np.abs(gradient - theirs[name]).max() < 1e-8, name


@every_family
def test_packed_samples_and_a_cache_see_what_they_see_alone(model_type: str, tmp_path: Path) -> None:
    peer = peer_model(model_type)
    peer.save_pretrained(tmp_path)
    ours = LLaMAModel.from_pretrained(tmp_path)
    tokens = random_tokens(ours.config, 1, 24)
    positions = np.concatenate([np.arange(9), np.arange(15)])[None]
    parts = [peer_logits(peer, part) for part in (tokens[:, :9], tokens[:, 9:])]
    packed = ours(tokens, positions=positions, cu_seqlens=np.array([0, 9, 24], np.int32)).numpy()
    np.testing.assert_allclose(packed, np.concatenate(parts, axis=1), rtol=0, atol=1e-4)
    prompt = tokens[0, :6].tolist()
    answer = peer.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert ours.generate(prompt, max_new_tokens=12, temperature=0.0) == answer[0, 6:].tolist()


@every_shape
def test_a_saved_model_is_the_same_in_transformers_and_here(
    model_type: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    peer = peer_model(model_type, **changes)
    peer.save_pretrained(tmp_path / "theirs")
    ours = LLaMAModel.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    table = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert table["model_type"] == model_type and "family" not in table
    tokens = random_tokens(ours.config, 1, 40)
    np.testing.assert_allclose(peer_logits(peer_of(tmp_path / "ours"), tokens), peer_logits(peer, tokens), atol=1e-5)
    again = LLaMAModel.from_pretrained(tmp_path / "ours")
    assert again.config == ours.config
    np.testing.assert_array_equal(again(tokens).numpy(), ours(tokens).numpy())


@every_family
def test_a_new_model_of_the_family_is_saved_and_read_back(model_type: str, tmp_path: Path) -> None:
    model = LLaMAModel(family_config(model_type), seed=5)
    model.save_pretrained(tmp_path)
    tokens = random_tokens(model.config, 1, 20)
    np.testing.assert_allclose(model(tokens).numpy(), peer_logits(peer_of(tmp_path), tokens), rtol=0, atol=1e-4)


# ---------------------------------------------------------------------- GGUF
@every_family
@pytest.mark.parametrize("tied", [False, True], ids=["a head", "tied"])
def test_a_gguf_file_is_the_model_that_transformers_and_llama_cpp_read(
    model_type: str, tied: bool, tmp_path: Path
) -> None:
    from ..edges.gguf_models import (
        FLOAT32,
        TOKENIZER,
        our_log_probabilities,
        peers_log_probabilities,
        transformers_log_probabilities,
    )

    path, tokenizer = tmp_path / "model.gguf", TOKENIZER | {"tokenizer.ggml.pre": "qwen2"}
    config = family_config(model_type, tie_word_embeddings=tied)
    arrays = random_arrays(config, std=0.15)
    write_gguf(path, config, arrays, metadata=tokenizer)
    assert np.abs(our_log_probabilities(path) - peers_log_probabilities(path)).max() < FLOAT32
    read = {"head_dim": 128} if model_type == "qwen3" else {}  # transformers does not read a Qwen3 file's key_length
    other = family_config(model_type, tie_word_embeddings=tied, **read)
    write_gguf(path, other, random_arrays(other, std=0.15), metadata=tokenizer)
    assert np.abs(our_log_probabilities(path) - transformers_log_probabilities(path)).max() < 1e-4
    write_gguf(path, config, arrays)
    model = LLaMAModel.from_pretrained(path)
    assert model.config.family == model_type
    tokens = random_tokens(config, 1, 30)
    np.testing.assert_array_equal(model(tokens).numpy(), model_of(config, arrays)(tokens).numpy())
    model.save_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(peer_logits(peer_of(tmp_path / "saved"), tokens), model(tokens).numpy(), atol=1e-4)


@every_family
def test_quantized_values_of_a_gguf_file_stay(model_type: str, tmp_path: Path) -> None:
    config = family_config(model_type)
    expected = write_gguf(tmp_path / "model.gguf", config, random_arrays(config), "Q4_0")
    model = LLaMAModel.from_pretrained(tmp_path / "model.gguf", quantize="auto")
    weights = weights_of(model)
    for name, weight in dict(model.named_parameters()).items():
        assert getattr(weight, "weight_type", None) == ("q4_0" if weight.ndim == 2 else None)
        np.testing.assert_array_equal(weights[name], expected[name], err_msg=name)


# ---------------------------------------------------------------------- adapters
@every_family
@pytest.mark.parametrize(
    "section", [name for name, kind in KINDS.items() if "target_modules" in kind.__dataclass_fields__]
)
def test_an_adapter_is_the_same_in_peft(model_type: str, section: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = family_config(model_type)
    model_of(config, random_arrays(config, std=0.15)).save_pretrained(tmp_path / "own")
    model = LLaMAModel.from_pretrained(tmp_path / "own")
    adapter = KINDS[section](target_modules=["all-linear"])
    adapter.apply(model)
    trained, base = dict(model.trainable_parameters()), set(config.parameter_shapes())
    assert not base & set(trained) and len(trained) >= 2 * 7
    rng = np.random.default_rng(3)
    for weight in trained.values():
        weight.numpy()[...] += rng.standard_normal(weight.shape) * 0.05
    tokens, targets = random_tokens(config, 2, 11), random_tokens(config, 2, 11, seed=1)
    save_adapter(model, tmp_path / "adapter")
    theirs = peer_of(tmp_path / "own")
    with torch.no_grad():  # PEFT over the values that our base has
        for name, values in weights_of(model).items():
            if name in base:
                theirs.get_parameter(name).copy_(torch.from_numpy(values))
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter", is_trainable=True).double()
    logits = theirs(torch.from_numpy(tokens)).logits
    with no_grad():
        np.testing.assert_allclose(model(tokens).numpy(), logits.detach().numpy(), rtol=0, atol=1e-4)
    model.loss(tokens, targets).backward()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten()).backward()
    gradients = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
    found = gradients_of(model)
    assert len(found) == len(gradients)
    for name, gradient in found.items():
        end = ".weight" if name.endswith((".weight", ".lora_magnitude_vector")) else ""
        theirs_name = f"base_model.model.{name.removesuffix('.weight')}.default{end}"
        assert relative_error(gradient, gradients[theirs_name]) < 1e-4, name
    again = LLaMAModel.from_pretrained(tmp_path / "own", **adapter.storage_options())
    load_adapter(again, tmp_path / "adapter")
    np.testing.assert_allclose(again(tokens).numpy(), model(tokens).numpy(), rtol=0, atol=1e-6)
    merge(model)
    np.testing.assert_allclose(model(tokens).numpy(), logits.detach().numpy(), rtol=0, atol=1e-4)


# ---------------------------------------------------------------------- what is refused
def sliding(window: int, first: int) -> dict[str, Any]:
    return {"use_sliding_window": True, "sliding_window": window, "max_window_layers": first}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no window of sliding layers": ({"layer_types": ["full_attention", "sliding_attention"]},
                                    "layer_types has 'sliding_attention', and there is no window without a use_"),
    "windows that are switched off": (sliding(8, 0) | {"use_sliding_window": False,
                                                       "layer_types": ["sliding_attention", "full_attention"]},
                                      "layer_types has 'sliding_attention', and there is no window without a use_"),
    "chunked layers": ({"layer_types": ["chunked_attention"] * 2}, "layer_types is "),
    "a window of nothing": (sliding(0, 1), "sliding_window is 0, expected an integer of at least 1, or null"),
    "an unknown scaling": ({"rope_scaling": {"rope_type": "ntk", "factor": 4.0}}, "rope_type is 'ntk', which is not"),
    "an older name of longrope": ({"rope_scaling": {"type": "su", "factor": 4.0}}, "type is 'su', which is not"),
    "a null head_dim": ({"head_dim": None}, "head_dim is null, expected an integer"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected 'silu'"),
    "biases of the MLP": ({"mlp_bias": True}, "mlp_bias is true; linear layers with a bias are not supported"),
    "no shape": ({"hidden_size": None}, "hidden_size is null, expected an integer"),
    "text_config": ({"text_config": {}}, "text_config is "),
}  # fmt: skip
HARMLESS: dict[str, dict[str, Any]] = {
    "a window beyond the context": sliding(64, 0),
    "a window of layers that are not there": sliding(16, 2),
    "a window that is switched off": {"use_sliding_window": False, "sliding_window": 16, "max_window_layers": 0},
    "no window": {"use_sliding_window": True, "sliding_window": None},
    "full layers under a window": sliding(16, 0) | {"layer_types": ["full_attention"] * 2},
}


def family_table(model_type: str, **changes: Any) -> dict[str, Any]:
    return family_config(model_type).to_hf() | changes


@pytest.mark.unit
@every_family
@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_change_the_result_is_refused(model_type: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LLaMAConfig.from_hf(family_table(model_type, **changes))
    assert message in str(caught.value)


@every_family
@pytest.mark.parametrize("changes", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_changes_nothing_is_read(model_type: str, changes: dict[str, Any], tmp_path: Path) -> None:
    peer_model(model_type, **BASE | {"max_position_embeddings": 64}).save_pretrained(tmp_path)
    table = json.loads((tmp_path / "config.json").read_text())
    table.pop("layer_types", None)
    (tmp_path / "config.json").write_text(json.dumps(table | changes))
    ours, peer = LLaMAModel.from_pretrained(tmp_path), peer_of(tmp_path)
    tokens = random_tokens(ours.config, 1, 60)
    np.testing.assert_allclose(ours(tokens).numpy(), peer_logits(peer, tokens), rtol=0, atol=1e-4)
    assert ours.config.family == model_type


@pytest.mark.unit
@every_family
def test_what_a_config_leaves_out_has_the_default_of_transformers(model_type: str) -> None:
    defaults = transformers.AutoConfig.for_model(model_type)
    needed = {"model_type": model_type, "vocab_size": 9, "hidden_size": 64, "intermediate_size": 96,
              "num_hidden_layers": 2, "num_attention_heads": 32}  # fmt: skip
    ours = LLaMAConfig.from_hf(needed)
    for name in ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"):
        assert getattr(ours, name) == getattr(defaults, name), name
    assert ours.head_dim == getattr(defaults, "head_dim", 2)
    assert ours.rope_theta == defaults.rope_parameters["rope_theta"]
    for name in set(needed) - {"model_type"}:
        with pytest.raises(ConfigError, match=f"{name} is missing"):
            LLaMAConfig.from_hf({key: value for key, value in needed.items() if key != name})


@pytest.mark.unit
@every_family
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda own: {f"{own}.rope.scaling.type": "su", f"{own}.rope.scaling.factor": 4.0}, "scaling.type is 'su'"),
        (lambda own: {f"{own}.attention.tomorrow": 1}, "is no known key of the architecture"),
        (lambda own: {f"{own}.expert_count": 4}, "mixtures of experts are not supported"),
        (lambda own: {f"{own}.attention.head_count": None}, "attention.head_count is missing"),
        (lambda own: {f"{own}.rope.dimension_count": 8}, "rope.dimension_count is 8, expected the head size"),
    ],
    ids=["scaling", "an unknown key", "experts", "no heads", "partial rotation"],
)
def test_metadata_that_would_change_the_result_are_refused(
    model_type: str, change: Callable[[str], dict[str, Any]], message: str, tmp_path: Path
) -> None:
    config = family_config(model_type)
    path = tmp_path / "model.gguf"
    write_gguf(path, config, random_arrays(config), metadata=change(FAMILIES[model_type].architecture))
    with pytest.raises(ConfigError) as caught:
        LLaMAModel.from_pretrained(path)
    assert message in str(caught.value) and f"model.gguf: {model_type}." in str(caught.value)


@pytest.mark.unit
@every_family
def test_tensors_of_another_family_are_named(model_type: str, tmp_path: Path) -> None:
    config = family_config(model_type)
    arrays = random_arrays(config)
    own = next(name for name in arrays if name not in small_config(head_dim=config.head_dim).parameter_shapes())
    write_gguf(tmp_path / "fewer.gguf", config, {k: v for k, v in arrays.items() if k != own})
    with pytest.raises(FormatError, match=r"the tensor blk\.0\.attn_\S+ of shape \(\d+,\) is missing"):
        LLaMAModel.from_pretrained(tmp_path / "fewer.gguf")
    write_hf(tmp_path / "llama", config, arrays)  # whose config.json says model_type llama
    with pytest.raises(FormatError, match=r"the tensor \S+self_attn\.\S+ (is a bias, which|has no place in a LLaMA)"):
        LLaMAModel.from_pretrained(tmp_path / "llama")
    extra = {"blk.0.attn_output.bias": np.zeros(64, np.float32), "rope_freqs.weight": np.ones(12, np.float32)}
    for name, values in extra.items():
        write_gguf(tmp_path / "more.gguf", config, arrays, extra={name: values})
        with pytest.raises(
            FormatError, match=rf"the tensor {name} (is a bias, which|belongs to no {model_type.capitalize()})"
        ):
            LLaMAModel.from_pretrained(tmp_path / "more.gguf")


@pytest.mark.unit
def test_every_row_is_found_by_its_names() -> None:
    assert set(NEW) | {"llama", "mistral"} <= set(FAMILIES)
    assert {row.architecture for row in FAMILIES.values()} == set(ARCHITECTURES)
    assert ARCHITECTURES["llama"].model_type == "llama"
    with pytest.raises(EntrenarError, match=r"model\.family is 'falcon'"):
        small_config(family="falcon")
