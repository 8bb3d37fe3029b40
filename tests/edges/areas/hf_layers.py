"""config.json of families whose layers differ: windows, soft caps, scales and rotations, each set to another value."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from entrenar.models.families import FAMILIES as ROWS
from tests.models.builders import Arrays, random_arrays, small_config

from ..harness import Variation
from ..hf import REMOVED, changed, logits_variation, shown, write_directory

AREA = "config.json: layers that differ"
SLIDING, FULL = "sliding_attention", "full_attention"
WINDOWS: dict[str, list[Any]] = {
    "sliding_window": [1, 3, 31, 64, 100, None, REMOVED, 0, "8", 8.5],
    "layer_types": [[SLIDING] * 2, [FULL] * 2, [FULL, SLIDING], [FULL] * 3, None, REMOVED, "x", [], ["chunked"] * 2],
    "max_position_embeddings": [32, 4096, REMOVED],
}
COMMON: dict[str, list[Any]] = {
    "num_key_value_heads": [1, None, REMOVED],
    "head_dim": [8, None, REMOVED],
    "rms_norm_eps": [1e-3, REMOVED],
    "tie_word_embeddings": [True, REMOVED],
    "attention_bias": [True, None],
    "hidden_act": ["gelu", REMOVED],
    "pad_token_id": [3, REMOVED],
    "rope_parameters": [REMOVED, None, {"rope_type": "linear", "factor": 2.0}],
    "rope_theta": [500.0],
    "rope_scaling": [{"rope_type": "linear", "factor": 2.0}, {"rope_type": "axial"}],
}
GEMMA: dict[str, list[Any]] = WINDOWS | COMMON | {
    "hidden_activation": ["silu", "gelu", None, REMOVED],
    "query_pre_attn_scalar": [7, 300, None, REMOVED, 2.5, 0],
    "attn_logit_softcapping": [1.0, 50, None, REMOVED, 0.0, -1.0, "x"],
    "final_logit_softcapping": [1.0, 50, None, REMOVED, 0.0, -1.0, "x"],
    "use_bidirectional_attention": [True, False, None],
    "sliding_window_pattern": [1, 2, 0, None],
    "cache_implementation": ["hybrid"],
}  # fmt: skip
LOCAL: dict[str, list[Any]] = GEMMA | {
    "rope_local_base_freq": [500.0, None],
    "rope_parameters": [
        REMOVED,
        None,
        {"rope_type": "linear", "factor": 2.0},
        {FULL: {"rope_type": "default", "rope_theta": 77.0}},
        {SLIDING: {"rope_type": "default", "rope_theta": 77.0}, FULL: None},
        {SLIDING: {"rope_type": "linear", "factor": 2.0}, FULL: {"rope_type": "default"}},
        {SLIDING: {"rope_type": "default"}, FULL: {"rope_type": "linear", "factor": 2.0}},
        {SLIDING: [1]},
    ],
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 8,
        "llama_4_scaling_beta": 0.5, "mscale": 1.0, "mscale_all_dim": 1.0}  # fmt: skip
SCALED: dict[str, list[Any]] = COMMON | {
    "sliding_window": [3, 64, None, REMOVED],
    "rope_parameters": [
        *[YARN | {key: value} for key, value in (("llama_4_scaling_beta", 0.0), ("llama_4_scaling_beta", None),
                                                 ("max_position_embeddings", 9), ("beta_fast", 4.0),
                                                 ("original_max_position_embeddings", 5), ("rope_type", "default"))],
        REMOVED,
    ],
    "rope_scaling": [YARN | {"factor": 2.0}],
}  # fmt: skip
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.5] * 4, "long_factor": [1.0, 3.0] * 4}
SCALES: dict[str, list[Any]] = {
    key: [2.5, 3, None, REMOVED, 0.0, -1.0, "x"]
    for key in ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")
}
NO_ROPE: dict[str, list[Any]] = {
    "no_rope_layers": [[1, 1], [0, 0], [0, 1], [1, 0, 1], [1], [], None, REMOVED, "x", [2, 1]],
    "no_rope_layer_interval": [1, 2, 0, "x", None],
    "use_sliding_window": [True],
    "layer_types": [[SLIDING] * 2, [FULL] * 2],
}
FUSED: dict[str, list[Any]] = COMMON | {
    "sliding_window": [3, 31, 64, None, REMOVED, 0, "8"],
    "partial_rotary_factor": [0.5, 0.6, 1, 0, None, REMOVED, "x", 2.0],
    "original_max_position_embeddings": [8, 64, REMOVED, None],
    "rope_parameters": [REMOVED, None, {"rope_type": "linear", "factor": 2.0}, {"partial_rotary_factor": 0.5},
                        LONG | {"partial_rotary_factor": 0.5}, LONG, LONG | {"factor": 3.0},
                        LONG | {"attention_factor": 1.5}, LONG | {"type": "su", "rope_type": "su"}],
    "rope_scaling": [LONG | {"type": "su"}, {"type": "yarn", "factor": 2.0}, LONG | {"long_factor": None}],
    "max_position_embeddings": [32, 4096, REMOVED],
    "resid_pdrop": [0.5],
}  # fmt: skip
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {
    "gemma2": ({"attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0}, GEMMA),
    "gemma3_text": ({"rope_local_base_freq": 100.0}, LOCAL),
    "olmo2": ({}, COMMON | {"sliding_window": [8, 64], "layer_types": [[SLIDING] * 2, [FULL] * 2]}),
    "ministral": ({}, WINDOWS | COMMON),
    "smollm3": ({"no_rope_layers": [1, 0]}, COMMON | NO_ROPE),
    "phi3": ({}, FUSED),
    "granite": (dict.fromkeys(SCALES, 1.25), COMMON | SCALES),
    "ministral3": ({"rope_scaling": {k: v for k, v in YARN.items() if k in ("rope_type", "factor", "mscale")
                                     or "all_dim" in k or "original" in k}, "llama_4_scaling_beta": 0.5}, SCALED),
}  # fmt: skip
# what a refusal has to name where it is not the key alone
NAMED_BY = {
    "num_key_value_heads": "num_key_value_heads|k_proj|qkv_proj",
    "head_dim": "head_dim|q_proj|q_norm|qkv_proj",
    "partial_rotary_factor": "partial_rotary_factor|head",
    "original_max_position_embeddings": "original_max_position_embeddings",
    "rope_parameters": "rope_",
    "rope_scaling": "rope_",
    "sliding_window": "sliding_window|layer_types",
    "layer_types": "layer_types|sliding_window",
    "tie_word_embeddings": "tie_word_embeddings|lm_head",
}


@functools.cache
def sound(model_type: str) -> tuple[dict[str, Any], Arrays]:
    """config.json and weights of a small model of the family; its window is shorter than the tokens."""
    changes, _ = FAMILIES[model_type]
    window = {"sliding_window": 8} if "sliding_window" in ROWS[model_type].own and model_type != "ministral3" else {}
    config = small_config(family=model_type, head_dim=16, **window, **changes)
    return config.to_hf(), random_arrays(config, std=0.3)


def _variation(model_type: str, key: str, value: Any) -> Variation:
    def build(folder: Path) -> None:
        table, arrays = sound(model_type)
        write_directory(folder, changed(table, {key: value}), arrays)

    return logits_variation(AREA, f"{model_type}: {key} {shown(value)}", NAMED_BY.get(key, key), build)


VARIATIONS = [
    _variation(model_type, key, value)
    for model_type, (_, keys) in FAMILIES.items()
    for key, values in keys.items()
    for value in values
]
