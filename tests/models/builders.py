"""Small models for the tests: configurations, random weights, and checkpoint files written without entrenar."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from entrenar.autograd import QuantizedTensor, Tensor
from entrenar.autograd.weight_types import gguf_weight_type
from entrenar.llama import LLaMAConfig, LLaMAModel

Arrays = dict[str, np.ndarray]

GGUF_NAMES = {  # as llama.cpp's converter writes them
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
FLOAT_TYPES = {"F32": np.float32, "F16": np.float16}
HF_TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}


def small_config(**changes: Any) -> LLaMAConfig:
    """Grouped-query attention, two layers, an odd vocabulary."""
    values: dict[str, Any] = {
        "vocab_size": 67,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
    }
    return LLaMAConfig(**(values | changes))


def random_arrays(config: LLaMAConfig, seed: int = 0, std: float = 0.1) -> Arrays:
    """Weights by Hugging Face name; the norms differ from one, so that one that is not applied shows."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in config.parameter_shapes().items():
        values = rng.standard_normal(shape).astype(np.float32) * np.float32(std)
        arrays[name] = 1 + values if name.endswith("norm.weight") else values
    return arrays


def model_of(config: LLaMAConfig, arrays: Mapping[str, np.ndarray]) -> LLaMAModel:
    """A trainable model with these weights."""
    return LLaMAModel(config, weights=lambda name, shape: Tensor(arrays[name].reshape(shape), requires_grad=True))


def random_model(config: LLaMAConfig | None = None, seed: int = 0, std: float = 0.1) -> LLaMAModel:
    """A trainable model with random weights, larger than the initial ones so that differences show."""
    config = config or small_config()
    return model_of(config, random_arrays(config, seed, std))


def random_tokens(config: LLaMAConfig, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape)


def weights_of(model: LLaMAModel) -> Arrays:
    """Every weight in float32."""
    arrays = {}
    for name, weight in model.named_parameters():
        values = weight.numpy() if isinstance(weight, Tensor) else weight.dequantize()
        arrays[name] = values.astype(np.float32)
    return arrays


def gradients_of(model: LLaMAModel) -> Arrays:
    """A copy of the gradient of every trainable weight."""
    return {name: weight.grad.numpy().copy() for name, weight in model.trainable_parameters()}


def assert_same(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """The same names, and under each the same values."""
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """The norm of the difference over the norm of what is expected."""
    expected = np.asarray(expected, np.float64)
    return float(np.linalg.norm(np.asarray(actual, np.float64) - expected) / np.linalg.norm(expected))


# ---------------------------------------------------------------------- GGUF
def gguf_name(name: str) -> str:
    """The name that llama.cpp gives a Hugging Face tensor."""
    stem, suffix = name.rsplit(".", 1)
    if stem in GGUF_NAMES:
        return f"{GGUF_NAMES[stem]}.{suffix}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[rest]}.{suffix}"


def permute_rows(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's `permute`: half-split rows of every head become interleaved pairs."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def stored(array: np.ndarray, type_name: str) -> tuple[np.ndarray, np.ndarray]:
    """(bytes as GGUF stores them, a row each; the values that they mean), by gguf, else by us, else random."""
    if type_name in FLOAT_TYPES:
        rows = array.astype(FLOAT_TYPES[type_name])
        return rows, rows.astype(np.float32)
    type_ = gguf.GGMLQuantizationType[type_name]
    try:
        rows = gguf.quants.quantize(array, type_)
    except NotImplementedError:
        ours = gguf_weight_type(type_name)
        rows = (
            random_blocks(type_, array.shape)
            if ours is None
            else QuantizedTensor.quantize(array, ours.name).quantized_values
        )
    return rows, gguf.quants.dequantize(rows, type_).astype(np.float32)


def random_blocks(type_: gguf.GGMLQuantizationType, shape: tuple[int, ...]) -> np.ndarray:
    """Rows of random blocks, those left out whose random scale is no number or far from one."""
    elements, size = gguf.GGML_QUANT_SIZES[type_]
    needed = shape[0] * shape[1] // elements
    rng = np.random.default_rng(7)
    candidates = rng.integers(0, 256, (4096, size), np.uint8)
    with np.errstate(all="ignore"):
        largest = np.abs(gguf.quants.dequantize(candidates, type_)).max(axis=1)
    sound = candidates[(largest > 1e-2) & (largest < 1)]
    return np.ascontiguousarray(sound[rng.integers(0, len(sound), needed)]).reshape(shape[0], -1)


def write_gguf(
    path: Path,
    config: LLaMAConfig,
    arrays: Mapping[str, np.ndarray],
    type_name: str | Callable[[str], str] = "F32",
    *,
    metadata: Mapping[str, Any] | None = None,
    drop: Iterable[str] = (),
    extra: Mapping[str, np.ndarray] | None = None,
    architecture: str | None = None,
) -> Arrays:
    """Write matrices as `type_name` (or as it says for a name), vectors in float32; returns what they mean.

    `metadata` replaces or adds keys (None leaves one out); `drop` and `extra` are GGUF tensor names; `architecture` is
    that of the configuration's family where nothing else is given, whose name its keys have.
    """
    own = "llama" if config.family == "mistral" else config.family
    writer = gguf.GGUFWriter(path, architecture or own)
    values: dict[str, Any] = {
        f"{own}.context_length": config.max_position_embeddings,
        f"{own}.embedding_length": config.hidden_size,
        f"{own}.block_count": config.num_hidden_layers,
        f"{own}.feed_forward_length": config.intermediate_size,
        f"{own}.attention.head_count": config.num_attention_heads,
        f"{own}.attention.head_count_kv": config.num_key_value_heads,
        f"{own}.attention.key_length": config.head_dim,
        f"{own}.attention.value_length": config.head_dim,
        f"{own}.rope.dimension_count": config.head_dim,
        f"{own}.rope.freq_base": float(config.rope_theta),
        f"{own}.attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        f"{own}.vocab_size": config.vocab_size,
        **(metadata or {}),
    }
    for key, value in values.items():
        if value is not None:
            _add_metadata(writer, key, value)
    expected = {}
    for name, array in arrays.items():
        chosen = "F32" if array.ndim == 1 else type_name if isinstance(type_name, str) else type_name(name)
        rows, expected[name] = stored(array, chosen)
        if own == "llama" and name.endswith("q_proj.weight"):
            rows = permute_rows(rows, config.num_attention_heads)
        elif own == "llama" and name.endswith("k_proj.weight"):
            rows = permute_rows(rows, config.kv_heads)
        if gguf_name(name) not in drop:
            raw_type = None if chosen in FLOAT_TYPES else gguf.GGMLQuantizationType[chosen]
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(rows), raw_dtype=raw_type)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _add_metadata(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, int):
        writer.add_uint64(key, value) if value >= 2**32 else writer.add_uint32(key, value)
    else:
        writer.add_array(key, value)


# ---------------------------------------------------------------------- Hugging Face directories
def hf_table(config: LLaMAConfig) -> dict[str, Any]:
    """A config.json as published LLaMA checkpoints have it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def write_hf(
    directory: Path, config: LLaMAConfig, arrays: Mapping[str, np.ndarray], dtype: str = "float32", shards: int = 1
) -> Arrays:
    """Write config.json and `shards` safetensors files; returns what the stored weights mean."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(hf_table(config)))
    typed = {name: array.astype(HF_TYPES[dtype]) for name, array in arrays.items()}
    if shards == 1:
        save_file(typed, str(directory / "model.safetensors"), {"format": "pt"})
    else:
        names, weight_map = list(typed), {}
        for number in range(shards):
            file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
            part = names[number::shards]
            save_file({name: typed[name] for name in part}, str(directory / file), {"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        write_index(directory, weight_map)
    return {name: array.astype(np.float32) for name, array in typed.items()}


def write_index(directory: Path, weight_map: Any) -> None:
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
