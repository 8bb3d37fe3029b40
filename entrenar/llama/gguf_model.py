"""GGUF files as LLaMA checkpoints: tensor names, row order, configuration.

GGUF names are mapped to Hugging Face's. The rows of q and k matrices are stored for an interleaved rotary embedding;
`half_split_rows` says how they come back into half-split order.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from entrenar.errors import ConfigError, FormatError
from entrenar.io.gguf import GGUFFile
from entrenar.io.lazy import LazyTensor
from entrenar.llama.config import LLaMAConfig

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


def read_gguf(path: Path) -> tuple[LLaMAConfig, dict[str, LazyTensor], dict[str, Any], list[str]]:
    """Configuration, tensors by Hugging Face name, metadata, and notes on what is ignored.

    Raises FormatError for a file that is damaged or no LLaMA, ConfigError for metadata that we do not support.
    """
    notes: list[str] = []
    file = GGUFFile(path)
    try:
        config = LLaMAConfig.from_gguf(file.metadata, tie_word_embeddings="output.weight" not in file.tensors)
        if ROPE_FACTORS in file.tensors:
            factors = [float(factor) for factor in file.tensors[ROPE_FACTORS].load().reshape(-1)]
            config = replace(config, rope_frequency_factors=factors)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in file.tensors.items():
        if name == ROPE_FACTORS:
            continue
        target = hugging_face_name(name)
        if target is None:
            raise FormatError(
                f"{path}: the tensor {name} belongs to no LLaMA layer; this architecture is not supported."
            )
        tensors[target] = tensor
    return config, tensors, file.metadata, notes
