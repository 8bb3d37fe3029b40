"""config.json: every field of the families' configurations and the rotary parameters, set to another value.

The fields come from transformers itself: a field that it adds fails here until a value is chosen for it.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters

from ..harness import Variation
from ..hf import REMOVED, changed, logits_variation, no_value_chosen, shown, sound_arrays, sound_table, write_directory

AREA = "config.json"
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}

# Values of each field, none of them its default, and the word that a refusal has to name where it is not the field.
FIELDS: dict[str, list[Any]] = {
    "transformers_version": ["4.31.0"],
    "architectures": [["LlamaModel"], None, REMOVED],
    "output_hidden_states": [True],
    "return_dict": [False],
    "dtype": ["bfloat16", "float16", None],
    "chunk_size_feed_forward": [4],
    "is_encoder_decoder": [True],
    "id2label": [{"0": "a", "1": "b", "2": "c"}],
    "label2id": [{"a": 0, "b": 1}],
    "problem_type": ["regression"],
    "vocab_size": [66, 70, None, REMOVED, "67", 0],
    "hidden_size": [60, None, REMOVED, "64", 64.5],
    "intermediate_size": [95, None, -1],
    "num_hidden_layers": [1, 3, None, 10**12],
    "num_attention_heads": [2, 8, 5, None, 0],
    "num_key_value_heads": [1, 3, 4, None, REMOVED],
    "hidden_act": ["gelu", "swish", "relu", "SiLU", "gelu_pytorch_tanh", None, REMOVED],
    "max_position_embeddings": [40, 4096, None, REMOVED],
    "initializer_range": [0.5],
    "rms_norm_eps": [1e-3, 1e-5, 0.0, None, "1e-5", REMOVED],
    "use_cache": [False],
    "pad_token_id": [3, -1, 67, -68, [0], "0"],
    "bos_token_id": [4, None, [1], REMOVED],
    "eos_token_id": [5, [5, 7, 9], None, [], REMOVED],
    "pretraining_tp": [2],
    "tie_word_embeddings": [True, REMOVED, None, 1],
    "rope_parameters": [None, REMOVED, {}, [1], "linear", {"full_attention": {"rope_type": "default"}}],
    "attention_bias": [True, None],
    "attention_dropout": [0.5],
    "mlp_bias": [True, None],
    "head_dim": [8, 15, None, REMOVED],
    "sliding_window": [8, 64, 100, None, REMOVED, "8"],
}
QWEN: dict[str, list[Any]] = {  # windows: those of layers from max_window_layers on, under a switch
    "use_sliding_window": [True, None, 1],
    "max_window_layers": [0, 1, 2, None],
    "layer_types": [["full_attention"] * 2, ["full_attention"] * 3, ["sliding_attention"] * 2, [], "x"],
}
NAMED_BY: dict[str, str] = {  # a shape is refused by the first tensor that has another
    "vocab_size": "vocab_size|embed_tokens",
    "hidden_size": "hidden_size|embed_tokens",
    "intermediate_size": "intermediate_size|gate_proj",
    "num_hidden_layers": "num_hidden_layers|layers.1|layers.2",
    "num_attention_heads": "num_attention_heads|q_proj",
    "num_key_value_heads": "num_key_value_heads|k_proj",
    "head_dim": "head_dim|q_proj",
    "model_type": "model_type|q_proj.bias",  # of a family whose tensors the sound model does not have
}
# Keys of older, newer and other writers; where the reference ignores them, so do we.
OTHERS: dict[str, list[Any]] = {
    "torch_dtype": ["bfloat16"],
    "rope_theta": [500.0, 500, None, "500"],
    "rope_scaling": [None, {}, [1], {"type": "linear", "factor": 2.0}, {"rope_type": "linear", "type": "llama3"}],
    "partial_rotary_factor": [0.5, 1.0],
    "original_max_position_embeddings": [16],
    "layer_types": [["full_attention"] * 2, ["full_attention"] * 3, ["sliding_attention"] * 2],
    "use_sliding_window": [False],
    "model_type": ["qwen2", "Llama", None],
    "per_layer_config": [{"0": {"intermediate_size": 48}}],
    "quantization_config": [{}, {"quant_method": "gptq", "bits": 4}, {"load_in_4bit": True}],
    "quantization": [{"group_size": 64, "bits": 4}],
    "residual_multiplier": [2.0],
    "final_logit_softcapping": [1.0],
    "auto_map": [{"AutoModelForCausalLM": "modeling_other.Other"}],
    "temperature": [0.7],
    "num_labels": [3],
    "is_causal": [False, True, None, 0],
    "use_bidirectional_attention": [True],
    "transformers_weights": ["other.safetensors"],
    "text_config": [{"hidden_size": 64}],
    "name_or_path": ["someone/something"],
}
# Values of every rotary parameter, set inside the table whether or not its type reads it.
ROPE: dict[str, list[Any]] = {
    "rope_theta": [500.0, 1000000, None, "x", 0],
    "rope_type": ["default", "axial", "su", None, 3, *ROPE_INIT_FUNCTIONS],
    "partial_rotary_factor": [0.5, 1.0],
    "factor": [2.0, 0.5, 1, None, "2", True, 0.0],
    "original_max_position_embeddings": [16, 64, None],
    "attention_factor": [1.5],
    "beta_fast": [16.0],
    "beta_slow": [2.0],
    "short_factor": [[1.0] * 8],
    "long_factor": [[2.0] * 8],
    "low_freq_factor": [2.0, None, 4.0],
    "high_freq_factor": [8.0, None],
    "mscale": [2.0],
    "mscale_all_dim": [2.0],
    "truncate": [False],
    "mrope_section": [[2, 3, 3]],
}


MORE = {"llama": OTHERS, "qwen2": QWEN, "qwen3": QWEN}  # fields of one family, keys that are tried under one


def _variation(name: str, change: dict[str, Any], names: str, model_type: str = "llama") -> Variation:
    def build(folder: Path) -> None:
        write_directory(folder, changed(sound_table(model_type), change), sound_arrays(model_type))

    return logits_variation(AREA, name, names, build)


def _fields(config: type, model_type: str) -> list[Variation]:
    """Every field of a configuration class at top level."""
    known = {field.name for field in dataclasses.fields(config)}
    chosen = FIELDS | MORE.get(model_type, {})
    variations = no_value_chosen(AREA, config.__name__, known - chosen.keys())
    for name, values in chosen.items():
        for value in values:
            change = {name: value}
            if name == "rope_theta":
                change["rope_parameters"] = REMOVED
            label = f"{model_type}: {name} {shown(value)}"
            variations.append(_variation(label, change, NAMED_BY.get(name, name), model_type))
    return variations


def _rope() -> list[Variation]:
    """Every rotary parameter under each type, in the table of transformers 5 and in the one of 4."""
    variations = no_value_chosen(AREA, "RopeParameters", set(RopeParameters.__annotations__) - ROPE.keys())
    for kind, needed in (("default", {}), ("linear", {"factor": 4.0}), ("llama3", LLAMA3)):
        for name, values in ROPE.items():
            for value in values:
                rope = {"rope_type": kind, **needed, name: value}
                named = "rope_type|factor" if name == "rope_type" else name
                variations += _spellings(f"{kind} with {name} {shown(value)}", rope, named)
        for name in needed:
            rope = {key: value for key, value in {"rope_type": kind, **needed}.items() if key != name}
            variations += _spellings(f"{kind} without {name}", rope, name)
    return variations


def _spellings(label: str, rope: dict[str, Any], names: str) -> list[Variation]:
    new = {"rope_parameters": {"rope_theta": 10000.0} | rope}
    old = {"rope_parameters": REMOVED, "rope_theta": 10000.0, "rope_scaling": rope}
    return [
        _variation(f"rope_parameters: {label}", new, names),
        _variation(f"rope_scaling: {label}", old, names),
    ]


def _contradictions() -> list[Variation]:
    """Two places that say different things."""
    linear = {"rope_type": "linear", "factor": 4.0}
    cases: dict[str, dict[str, Any]] = {
        "rope_theta at top level and another in rope_parameters": {"rope_theta": 500.0},
        "rope_theta at top level and another in rope_scaling": {
            "rope_theta": 500.0,
            "rope_scaling": linear | {"rope_theta": 77.0},
            "rope_parameters": REMOVED,
        },
        "rope_theta at top level, rope_parameters without": {
            "rope_theta": 500.0,
            "rope_parameters": {"rope_type": "default"},
        },
        "rope_theta nowhere": {"rope_parameters": linear},
        "rope_scaling and another rope_parameters": {
            "rope_scaling": linear,
            "rope_parameters": {"rope_type": "default", "rope_theta": 77.0},
        },
        "an empty rope_scaling and rope_parameters": {"rope_scaling": {}, "rope_parameters": linear},
        "original_max_position_embeddings at top level and another inside": {
            "original_max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "llama3", **LLAMA3},
        },
        "a null original_max_position_embeddings inside, a number at top level": {
            "original_max_position_embeddings": 16,
            "rope_parameters": {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": None},
        },
        "rope_parameters that is no table beside rope_scaling": {"rope_scaling": linear, "rope_parameters": [1]},
        "type and another rope_type": {"rope_parameters": linear | {"type": "default"}},
        "torch_dtype and another dtype": {"torch_dtype": "float16", "dtype": "bfloat16"},
        "architectures of Mistral under model_type llama": {"architectures": ["MistralForCausalLM"]},
        "sliding_window 8 under model_type llama, use_sliding_window false": {
            "sliding_window": 8,
            "use_sliding_window": False,
        },
    }
    named = {"sliding_window": "sliding_window"}
    return [_variation(name, change, named.get(name.split()[0], "rope")) for name, change in cases.items()]


def _combinations(count: int) -> list[Variation]:
    """Several of these changes at once, drawn with a fixed seed."""
    rng = random.Random(9)
    variations = []
    for number in range(count):
        change: dict[str, Any] = {}
        for fields in rng.choices([FIELDS, OTHERS], k=rng.randint(1, 3)):
            name = rng.choice(sorted(fields.keys() - {"model_type"}))
            change[name] = rng.choice(fields[name])
        key, kind = rng.choice(["rope_parameters", "rope_scaling"]), rng.choice(["default", "linear", "llama3"])
        inside = rng.choice(sorted(ROPE.keys() - {"rope_type"}))
        change[key] = {"rope_type": kind, **LLAMA3, inside: rng.choice(ROPE[inside])}
        named = "|".join([*(NAMED_BY.get(name, name) for name in change), inside])
        model_type = rng.choice(["llama", "mistral"])
        label = f"{model_type}: combination {number} of {', '.join(sorted(change))} with {kind} and {inside}"
        variations.append(_variation(label, change, named, model_type))
    return variations


MISTRAL = [
    _variation(
        "mistral: layer_types without a window", {"layer_types": ["full_attention"] * 2}, "layer_types", "mistral"
    ),
    _variation(
        "mistral: layer_types and a window as wide as the context",
        {"layer_types": ["full_attention"] * 2, "sliding_window": 64},
        "layer_types",
        "mistral",
    ),
]
WINDOWS: dict[str, dict[str, Any]] = {
    "less than the context": {"sliding_window": 8},
    "as wide as the context": {"sliding_window": 64},
    "from a layer that is not there": {"sliding_window": 8, "max_window_layers": 2},
    "of null": {"sliding_window": None},
    "absent": {"sliding_window": REMOVED},
    "under full layers": {"sliding_window": 8, "layer_types": ["full_attention"] * 2},
    "under sliding layers": {"sliding_window": 8, "layer_types": ["sliding_attention"] * 2},
    "from no layer named": {"sliding_window": 8, "max_window_layers": REMOVED},
}


def _windows(model_type: str) -> list[Variation]:
    """Windows that are switched on."""
    on = {"use_sliding_window": True, "max_window_layers": 0}
    return [
        _variation(f"{model_type}: a window {name}", on | change, "sliding_window|layer_types", model_type)
        for name, change in WINDOWS.items()
    ]


VARIATIONS = [
    *_fields(LlamaConfig, "llama"),
    *_fields(MistralConfig, "mistral"),
    *_fields(Qwen2Config, "qwen2"),
    *_fields(Qwen3Config, "qwen3"),
    *_windows("qwen2"),
    *_windows("qwen3"),
    *_rope(),
    *_contradictions(),
    *MISTRAL,
    *_combinations(80),
]
