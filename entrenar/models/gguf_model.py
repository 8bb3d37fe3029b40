"""GGUF files as LLaMA checkpoints: tensor names, row order, configuration.

GGUF names are mapped to Hugging Face's. The rows of q and k matrices are stored for an interleaved rotary embedding;
`half_split_rows` says how they come back into half-split order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from entrenar.config import from_table
from entrenar.errors import ConfigError, FormatError
from entrenar.io.gguf import GGUFFile, GGUFTensor
from entrenar.io.lazy import LazyTensor
from entrenar.models.config import LLaMAConfig
from entrenar.models.gguf_keys import (
    EMBEDDING,
    FEED_FORWARD,
    HEADS,
    KEY_HEADS,
    KEY_LENGTH,
    LAYERS,
    TOKENS,
    VOCABULARY,
    config_values,
)

GGUF_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GGUF_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
ROPE_FACTORS = "rope_freqs.weight"
_QUERY, _KEY = (f"{HEADS} x {KEY_LENGTH}", EMBEDDING), (f"{KEY_HEADS} x {KEY_LENGTH}", EMBEDDING)
SHAPE_KEYS = {  # by the part of a tensor's name: the metadata that give its shape
    "token_embd": (f"the entries of {TOKENS} (or {VOCABULARY})", EMBEDDING),
    "output": (f"the entries of {TOKENS} (or {VOCABULARY})", EMBEDDING),
    "output_norm": (EMBEDDING,),
    "attn_norm": (EMBEDDING,),
    "ffn_norm": (EMBEDDING,),
    "attn_q": _QUERY,
    "attn_output": _QUERY[::-1],
    "attn_k": _KEY,
    "attn_v": _KEY,
    "ffn_gate": (FEED_FORWARD, EMBEDDING),
    "ffn_up": (FEED_FORWARD, EMBEDDING),
    "ffn_down": (EMBEDDING, FEED_FORWARD),
    "rope_freqs": (f"half of {KEY_LENGTH}",),
}


def hugging_face_name(gguf_name: str) -> str | None:
    """The Hugging Face name of a GGUF tensor, or None for one that is no weight of a LLaMA (rope_freqs)."""
    if gguf_name in GGUF_TOP:
        return GGUF_TOP[gguf_name]
    parts = gguf_name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in GGUF_LAYER and parts[3] == "weight":
        return f"model.layers.{parts[1]}.{GGUF_LAYER[parts[2]]}.weight"
    return None


def half_split_rows(count: int, head_dim: int) -> np.ndarray:
    """The GGUF row that holds each row of a half-split q or k matrix: rows (2 i, 2 i + 1) of a head were halves."""
    rows = np.arange(count).reshape(-1, head_dim // 2, 2)
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(-1)


def gguf_name(name: str) -> str:
    """The GGUF name of a Hugging Face tensor of a LLaMA."""
    for ours, theirs in GGUF_TOP.items():
        if theirs == name:
            return ours
    _, _, block, layer = name.removesuffix(".weight").split(".", 3)
    (ours,) = (ours for ours, theirs in GGUF_LAYER.items() if theirs == layer)
    return f"blk.{block}.{ours}.weight"


def read_gguf(path: Path) -> tuple[LLaMAConfig, dict[str, LazyTensor], dict[str, Any], list[str]]:
    """Configuration, tensors by Hugging Face name, metadata, and remarks on what is ignored.

    Raises FormatError for a file that is damaged, contradicts itself or is no LLaMA, ConfigError for metadata that we
    do not support.
    """
    file = GGUFFile(path)
    try:
        values, remarks = config_values(file.metadata)
        tied = "output.weight" not in file.tensors
        config = from_table(LLaMAConfig, values | {"tie_word_embeddings": tied}, "model")
        _check_tensors(path, config, file.tensors)
        if ROPE_FACTORS in file.tensors:
            config = replace(config, rope_frequency_factors=_rope_factors(path, file.tensors[ROPE_FACTORS]))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    names = {hugging_face_name(name): tensor for name, tensor in file.tensors.items()}
    tensors: dict[str, LazyTensor] = {name: tensor for name, tensor in names.items() if name is not None}
    return config, tensors, file.metadata, [f"{path.name}: {remark}" for remark in remarks]


def _check_tensors(path: Path, config: LLaMAConfig, tensors: Mapping[str, GGUFTensor]) -> None:
    """Every tensor that the metadata ask for is there in its shape and in a type of weights, and no other."""
    expected = {gguf_name(name): shape for name, shape in config.parameter_shapes().items()}
    if ROPE_FACTORS in tensors:
        expected[ROPE_FACTORS] = (config.head_size // 2,)
    for name in tensors:
        if name not in expected:
            raise FormatError(f"{path}: the tensor {name} {_foreign(name, config.num_hidden_layers)}.")
    for name, shape in expected.items():
        if name not in tensors:
            wrong = f", or its {LAYERS} = {config.num_hidden_layers} is wrong" if name.startswith("blk.") else ""
            raise FormatError(f"{path}: the tensor {name} of shape {shape} is missing; the file is incomplete{wrong}.")
        tensor = tensors[name]
        if tensor.shape != shape:
            keys = " and ".join(SHAPE_KEYS[name.split(".")[-2]])
            raise FormatError(
                f"{path}: the tensor {name} has shape {tensor.shape}, expected {shape} by {keys}; the file contradicts "
                "itself."
            )
        if not tensor.weights:
            raise FormatError(
                f"{path}: the tensor {name} has type {tensor.type}, expected F32, F16, BF16 or a quantized type that "
                "the gguf library dequantizes; use a file of another quantization."
            )


def _rope_factors(path: Path, tensor: GGUFTensor) -> list[float]:
    if tensor.type != "F32":  # llama.cpp takes no other
        raise FormatError(f"{path}: the tensor {ROPE_FACTORS} has type {tensor.type}, expected F32; convert it again.")
    factors = [float(factor) for factor in tensor.load()]
    for index, factor in enumerate(factors):
        if not 0 < factor < math.inf:
            raise FormatError(
                f"{path}: the tensor {ROPE_FACTORS} of type {tensor.type} is {factor} at {index}, expected positive "
                "numbers; fetch the file again."
            )
    return factors


def _foreign(name: str, layers: int) -> str:
    """What to say of a tensor that a LLaMA of this configuration has no place for."""
    part = name.split(".")[-2] if name.count(".") else name
    if hugging_face_name(name) is not None:
        return f"belongs to a layer beyond {LAYERS} = {layers}; the file contradicts itself"
    if name.endswith(".bias") and hugging_face_name(name.removesuffix("bias") + "weight"):
        return "is a bias; models with biases are not supported"
    if "exp" in part or part == "ffn_gate_inp":
        return "belongs to a mixture of experts, which is not supported"
    if part.startswith("rope_factors"):
        return "belongs to a longrope scaling, which is not supported"
    return "belongs to no LLaMA layer; this architecture is not supported"
