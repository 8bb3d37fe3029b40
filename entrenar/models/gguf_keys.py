"""The metadata of a GGUF file, read as llama.cpp reads those of its architecture.

Each key is used, or stands in UNUSED because llama.cpp gives it no meaning for the architectures of
`entrenar.models.families`, or is refused. Names of keys are without the architecture in front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from entrenar.config import shown
from entrenar.errors import ConfigError
from entrenar.models.families import ARCHITECTURES, FULL, SLIDING, Family, default_layer_types, one_of
from entrenar.models.rotary import ORIGINAL, yarn_magnitude

NO_MODEL = {
    "adapter": "a LoRA adapter; give the model that it was trained over",
    "mmproj": "a multimodal projector; give the language model that it belongs to",
    "imatrix": "an importance matrix; give the model that it was measured on",
    "vocab": "a vocabulary; give a file with weights",
}
EMBEDDING, FEED_FORWARD, LAYERS = "embedding_length", "feed_forward_length", "block_count"
HEADS, KEY_HEADS = "attention.head_count", "attention.head_count_kv"
KEY_LENGTH, VALUE_LENGTH = "attention.key_length", "attention.value_length"
LOCAL_SIZES = ("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa")
WINDOW, WINDOW_PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
LOCAL_ROPE_BASE = "rope.freq_base_swa"
CONTEXT, VOCABULARY = "context_length", "vocab_size"
EPSILON, ROPE_BASE = "attention.layer_norm_rms_epsilon", "rope.freq_base"
ROTATED, SCALING = "rope.dimension_count", "rope.scaling.type"
FACTOR, OLD_FACTOR = "rope.scaling.factor", "rope.scale_linear"
ATTENTION_FACTOR, CAUSAL = "rope.scaling.attn_factor", "attention.causal"
ORIGINAL_CONTEXT = "rope.scaling.original_context_length"
YARN_KEYS = {
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
    "rope.scaling.yarn_log_multiplier": "mscale_all_dim",
}
ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
TOKENS = "tokenizer.ggml.tokens"
MOST_LAYERS = 10_000
# what they say of experts and of layers that predict further tokens; 0 is as good as absent
ZERO = {
    "expert_count": "mixtures of experts",
    "expert_used_count": "mixtures of experts",
    "expert_group_count": "mixtures of experts",
    "nextn_predict_layers": "layers that predict further tokens",
}
USED = frozenset(
    {EMBEDDING, FEED_FORWARD, LAYERS, HEADS, KEY_HEADS, KEY_LENGTH, VALUE_LENGTH, CONTEXT, VOCABULARY, EPSILON,
     ROPE_BASE, ROTATED, SCALING, FACTOR, OLD_FACTOR, ATTENTION_FACTOR, ORIGINAL_CONTEXT, CAUSAL, *ZERO}
)  # fmt: skip
DESCRIPTIVE = frozenset({"tensor_data_layout", "rope.scaling.finetuned"})  # change nothing anywhere
_UNUSED = """
    activation_sparsity_scale altup.active_idx altup.num_inputs attention.clamp_kqv attention.decay_lora_rank
    attention.gate_lora_rank attention.group_norm_epsilon attention.group_norm_groups attention.iclr_lora_rank
    attention.indexer.head_count attention.indexer.key_length attention.indexer.top_k attention.key_length_mla
    attention.key_length_swa attention.kv_lora_rank attention.layer_norm_epsilon attention.max_alibi_bias
    attention.output_scale attention.q_lora_rank attention.relative_buckets_count attention.scale
    attention.shared_kv_layers attention.sliding_window attention.sliding_window_pattern attention.temperature_length
    attention.temperature_scale attention.value_length_mla attention.value_length_swa
    attention.value_residual_mix_lora_rank attn_logit_softcapping classifier.output_labels convnext.block_count
    convnext.embedding_length decoder_block_count decoder_start_token_id embedding_length_out
    embedding_length_per_layer_input embedding_scale expert_chunk_feed_forward_length expert_feed_forward_length
    expert_gating_func expert_group_scale expert_group_used_count expert_shared_count
    expert_shared_feed_forward_length expert_weights_norm expert_weights_scale experts_per_group features_length
    final_logit_softcapping full_attention_interval interleave_moe_layer_step kda.head_dim leading_dense_block_count
    logit_scale moe_every_n_layers moe_latent_size n_deepstack_layers pooling_type posnet.block_count
    posnet.embedding_length rescale_every_n_layers residual_scale rope.dimension_count_swa rope.dimension_sections
    rope.freq_base_swa rope.scaling.alpha rope.scaling.yarn_attn_factor
    rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow rope.scaling.yarn_ext_factor
    rope.scaling.yarn_log_multiplier router_logit_softcapping shortconv.l_cache ssm.conv_kernel ssm.dt_b_c_rms
    ssm.group_count ssm.inner_size ssm.state_size ssm.time_step_rank swiglu_clamp_exp swiglu_clamp_shexp swin_norm
    time_decay_extra_dim time_mix_extra_dim token_shift_count use_parallel_residual wkv.head_size
"""
UNUSED = frozenset(_UNUSED.split())


class Metadata:
    """The metadata of one model: values by key without the architecture, sentences by the whole key."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.family = _family(metadata)
        self.whole = metadata
        prefix = f"{self.family.architecture}."
        self.own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}

    def __contains__(self, key: str) -> bool:
        return key in self.own

    def name(self, key: str) -> str:
        """The key as it stands in the file."""
        return f"{self.family.architecture}.{key}"

    def present(self, key: str) -> Any:
        """The value; ConfigError where there is none."""
        if self.own.get(key) is None:
            raise ConfigError(f"{self.name(key)} is missing from the GGUF metadata; convert the model again.")
        return self.own[key]

    def integer(self, key: str, most: int = 2**31 - 1) -> int:
        """A positive integer."""
        return self._integer(key, self.present(key), most)

    def _integer(self, key: str, value: Any, most: int = 2**31 - 1) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
            raise ConfigError(f"{self.name(key)} is {shown(value)}, expected an integer from 1 to {most}.")
        return value

    def number(self, key: str) -> float:
        """A positive float."""
        value = self.present(key)
        if not isinstance(value, float) or not 0 < value < float("inf"):
            raise ConfigError(f"{self.name(key)} is {shown(value)}, expected a positive number stored as a float.")
        return value

    def per_layer(self, key: str, layers: int) -> int:
        """A count, which a file may have once for each layer."""
        value = self.present(key)
        if not isinstance(value, list):
            return self._integer(key, value)
        if len(value) != layers or any(other != value[0] for other in value):
            raise ConfigError(
                f"{self.name(key)} is {shown(value)}, expected one number, or the same one for each of the {layers} "
                "layers."
            )
        return self._integer(key, value[0])


def config_values(
    metadata: Mapping[str, Any], divisors: Mapping[str, list[float]] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The fields of LLaMAConfig that the metadata give, and a sentence for each key that is ignored.

    `divisors`: what the tensors of LONG_FACTORS hold, by the keys of longrope scaling, where the file has them.
    Raises ConfigError where the file is no model, of another architecture, lacks a key, or asks for what we lack.
    """
    data = Metadata(metadata)
    _check_supported(data)
    remarks = _ignored(data)
    layers = data.integer(LAYERS, most=MOST_LAYERS)
    values: dict[str, Any] = {
        "family": data.family.model_type,
        "hidden_size": data.integer(EMBEDDING),
        "num_hidden_layers": layers,
        "intermediate_size": data.per_layer(FEED_FORWARD, layers),
        "num_attention_heads": data.per_layer(HEADS, layers),
        "max_position_embeddings": data.integer(CONTEXT),
        "rms_norm_eps": data.number(EPSILON),
        "vocab_size": _vocabulary(data, remarks),
    }
    if KEY_HEADS in data:
        values["num_key_value_heads"] = data.per_layer(KEY_HEADS, layers)
    if ROPE_BASE in data:
        values["rope_theta"] = data.number(ROPE_BASE)
    values |= _head_size(data, values) | _rope_scaling(data, divisors or {})
    values |= data.family.gguf_defaults
    values |= {field: data.own[key] for key, field in data.family.gguf_keys.items() if key in data}
    values |= _windows(data, values) | _attention_scale(data.family, values)
    return values | _special_tokens(metadata, values["vocab_size"], remarks), remarks


def _family(metadata: Mapping[str, Any]) -> Family:
    """The row of the file's architecture; ConfigError where there is none, or the file is no model."""
    kind = metadata.get("general.type")
    if isinstance(kind, str) and kind in NO_MODEL:
        raise ConfigError(f"general.type is {kind!r}, expected 'model': the file is {NO_MODEL[kind]}.")
    architecture, known = metadata.get("general.architecture"), one_of(tuple(ARCHITECTURES))
    if architecture == "clip":
        raise ConfigError(f"general.architecture is 'clip', expected {known}: the file is {NO_MODEL['mmproj']}.")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ConfigError(
            f"general.architecture is {shown(architecture)}, expected {known}; use a model of these families."
        )
    return ARCHITECTURES[architecture]


def _check_supported(data: Metadata) -> None:
    for key, what in ZERO.items():
        if data.own.get(key, 0) != 0:
            raise ConfigError(
                f"{data.name(key)} is {shown(data.own[key])}, expected none or 0; {what} are not supported."
            )
    for key, value in data.family.gguf_fixed.items():
        if data.own.get(key, value) != value:
            raise ConfigError(
                f"{data.name(key)} is {shown(data.own[key])}, with which llama.cpp computes something else; expected "
                f"{shown(value)}, or none."
            )
    if data.own.get(CAUSAL, True) is not True:
        raise ConfigError(
            f"{data.name(CAUSAL)} is {shown(data.own[CAUSAL])}, expected true; only causal attention is supported."
        )


def _ignored(data: Metadata) -> list[str]:
    """A remark for each key without a meaning; ConfigError for one that may have one that we do not know."""
    remarks = []
    for key in data.own:
        if key in USED or key in DESCRIPTIVE or key in data.family.gguf_keys:
            continue
        if data.family.gguf_yarn and key in YARN_KEYS:
            continue
        if data.family.gguf_windows and key in (WINDOW_PATTERN, LOCAL_ROPE_BASE, *LOCAL_SIZES):
            continue
        if key not in UNUSED:
            raise ConfigError(
                f"{data.name(key)} is no known key of the architecture {data.family.architecture!r} and may change "
                "what the model computes; use a file that llama.cpp's converter wrote, or a newer version of this "
                "program."
            )
        remarks.append(f"{data.name(key)} is ignored, as llama.cpp ignores it for this architecture.")
    return remarks


def _vocabulary(data: Metadata, remarks: list[str]) -> int:
    """The tokenizer's tokens count; the key counts where there are none."""
    tokens = data.whole.get(TOKENS)
    if not isinstance(tokens, list) or not tokens:
        return data.integer(VOCABULARY)
    if VOCABULARY in data and data.integer(VOCABULARY) != len(tokens):
        remarks.append(
            f"{data.name(VOCABULARY)} is {data.own[VOCABULARY]} and ignored: {TOKENS} has {len(tokens)} entries, and "
            "llama.cpp goes by those."
        )
    return len(tokens)


def _special_tokens(metadata: Mapping[str, Any], size: int, remarks: list[str]) -> dict[str, int]:
    """The ids that begin and end a text; llama.cpp too does without those that no token has."""
    found = {}
    for name in ("bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id"):
        key = f"tokenizer.ggml.{name}"
        value = metadata.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size:
            found[name] = value
        elif value is not None:
            remarks.append(f"{key} is {shown(value)} and ignored: the vocabulary has {size} tokens.")
    return {name: value for name, value in found.items() if name in ("bos_token_id", "eos_token_id")}


def _head_size(data: Metadata, values: Mapping[str, Any]) -> dict[str, int]:
    """`head_dim`; keys, values and rotation must agree on it."""
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    key_length, value_length = data.name(KEY_LENGTH), data.name(VALUE_LENGTH)
    if KEY_LENGTH not in data and hidden % heads:
        raise ConfigError(
            f"{data.name(EMBEDDING)} is {hidden}, expected a multiple of {data.name(HEADS)} = {heads} where "
            f"{key_length} is missing."
        )
    key_heads = values.get("num_key_value_heads", heads)
    if heads % key_heads:
        raise ConfigError(
            f"{data.name(HEADS)} is {heads} and {data.name(KEY_HEADS)} is {key_heads}, expected the first to be a "
            "multiple of the second."
        )
    size = data.integer(KEY_LENGTH) if KEY_LENGTH in data else hidden // heads
    value_size = data.integer(VALUE_LENGTH) if VALUE_LENGTH in data else hidden // heads
    if value_size != size:
        raise ConfigError(
            f"{key_length} is {_or_missing(data, KEY_LENGTH, size)} and {value_length} is "
            f"{_or_missing(data, VALUE_LENGTH, value_size)}, expected the same for both; heads of two sizes are not "
            "supported."
        )
    if size % 2:
        raise ConfigError(f"{key_length} makes heads of {size}, expected an even number (rotary halves).")
    return {"head_dim": size} | _rotated(data, size)


def _rotated(data: Metadata, size: int) -> dict[str, float]:
    """The part of a head that is rotated, where the family heeds it."""
    rotated = data.own.get(ROTATED, size)
    if rotated == size:
        return {}
    if "partial_rotary_factor" not in data.family.own:
        raise ConfigError(
            f"{data.name(ROTATED)} is {shown(rotated)}, expected the head size {size}; partial rotation is not "
            f"supported for the architecture {data.family.architecture!r}."
        )
    if data.integer(ROTATED) > size or rotated % 2:
        raise ConfigError(f"{data.name(ROTATED)} is {rotated}, expected an even number up to the head size {size}.")
    factor = rotated / size
    return {"partial_rotary_factor": factor if int(size * factor) == rotated else math.nextafter(factor, 1)}


def _windows(data: Metadata, values: Mapping[str, Any]) -> dict[str, Any]:
    """`layer_types` of an architecture with windows; without a window, or with one of 0, all layers see everything."""
    family, layers = data.family, values["num_hidden_layers"]
    if not family.gguf_windows:
        return {}
    if not family.local_rope and data.own.get(LOCAL_ROPE_BASE, values.get("rope_theta")) != values.get("rope_theta"):
        raise ConfigError(
            f"{data.name(LOCAL_ROPE_BASE)} is {shown(data.own[LOCAL_ROPE_BASE])}, expected that of "
            f"{data.name(ROPE_BASE)}; a rotation of its own in layers with a window is not supported for this "
            "architecture."
        )
    for key in LOCAL_SIZES:
        if data.own.get(key, values["head_dim"]) != values["head_dim"]:
            raise ConfigError(
                f"{data.name(key)} is {shown(data.own[key])}, expected the head size {values['head_dim']}; layers with "
                "a window whose heads differ are not supported."
            )
    if not values.get("sliding_window"):
        return {"sliding_window": None, "layer_types": None}
    pattern = data.own.get(WINDOW_PATTERN, family.full_every)
    if isinstance(pattern, list):
        if len(pattern) != layers or not all(isinstance(windowed, bool) for windowed in pattern):
            raise ConfigError(
                f"{data.name(WINDOW_PATTERN)} is {shown(pattern)}, expected true or false for each of the {layers} "
                "layers."
            )
        return {"layer_types": [SLIDING if windowed else FULL for windowed in pattern]}
    if isinstance(pattern, bool) or not isinstance(pattern, int) or pattern < 0:
        raise ConfigError(f"{data.name(WINDOW_PATTERN)} is {shown(pattern)}, expected an integer or a list.")
    return {"layer_types": default_layer_types(family, layers, pattern)}


def _attention_scale(family: Family, values: Mapping[str, Any]) -> dict[str, int]:
    """`query_pre_attn_scalar`, which no key holds."""
    if "query_pre_attn_scalar" not in family.own:
        return {}
    return {"query_pre_attn_scalar": query_scalar(family, values)}


def query_scalar(family: Family, values: Mapping[str, Any]) -> int:
    """What llama.cpp divides attention scores by the root of: the head size, but for the largest model of a family."""
    if values["num_hidden_layers"] == family.gguf_large:
        return int(values["hidden_size"] // values["num_attention_heads"])
    return int(values["head_dim"])


def _or_missing(data: Metadata, key: str, meant: int) -> str:
    return str(meant) if key in data else f"missing (which means {meant})"


def _rope_scaling(data: Metadata, divisors: Mapping[str, list[float]]) -> dict[str, Any]:
    """Scaling is linear where the type is missing, and by the legacy key where the factor is; 0 is none."""
    kind = data.own.get(SCALING, "linear")
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise ConfigError(
            f"{data.name(SCALING)} is {shown(kind)}, expected 'none', 'linear', 'yarn' or 'longrope'; use a model "
            "without it."
        )
    original = _original_context(data)
    key = FACTOR if FACTOR in data else OLD_FACTOR
    factor = 1.0 if kind == "none" or key not in data or data.own[key] == 0 else data.number(key)
    if divisors or kind == "longrope":
        return {"rope_scaling": _longrope(data, divisors, kind, factor)}
    scale = data.own.get(ATTENTION_FACTOR, 1.0)
    if kind == "yarn" and scale != 1 and data.family.local_rope:
        raise ConfigError(
            f"{data.name(ATTENTION_FACTOR)} is {shown(scale)}, which llama.cpp applies in layers with a window too; "
            "expected none or 1 for this architecture."
        )
    if kind == "yarn":
        scaling = {"rope_type": kind, "factor": factor, ORIGINAL: original} | _yarn_numbers(data)
        if scale != 1:
            scaling["attention_factor"] = _shortest(data.number(ATTENTION_FACTOR), yarn_magnitude(factor))
        return {} if factor == 1 and scale == 1 else {"rope_scaling": scaling}
    if scale != 1:
        raise ConfigError(
            f"{data.name(ATTENTION_FACTOR)} is {shown(scale)}, expected none or 1 where {data.name(SCALING)} is "
            f"{shown(kind)}."
        )
    return {} if factor == 1 else {"rope_scaling": {"rope_type": "linear", "factor": factor}}


def _yarn_numbers(data: Metadata) -> dict[str, Any]:
    """What an architecture heeds beside the factor; llama.cpp takes the magnitude of a multiplier for that of 1."""
    if not data.family.gguf_yarn:
        return {}
    numbers: dict[str, Any] = {name: data.number(key) for key, name in YARN_KEYS.items() if key in data}
    if numbers.get("mscale_all_dim"):
        numbers["mscale"] = 1.0
    return numbers


def _longrope(data: Metadata, divisors: Mapping[str, list[float]], kind: str, factor: float) -> dict[str, Any]:
    """The scaling of a file with divisors, whose type llama.cpp's converter leaves out."""
    if kind == "yarn" or factor != 1:
        raise ConfigError(
            f"{data.name(SCALING)} is {shown(kind)} with a factor of {factor}, and the file has the tensors of a "
            "longrope scaling; expected one of them."
        )
    for key, name in LONG_FACTORS.items():
        if key not in divisors:
            raise ConfigError(f"{data.name(SCALING)} is longrope, and the tensor {name} is missing; convert it again.")
    scale = data.number(ATTENTION_FACTOR) if ATTENTION_FACTOR in data else 1.0
    return {"rope_type": "longrope", ORIGINAL: _original_context(data), "attention_factor": scale, **divisors}


def _original_context(data: Metadata) -> int:
    """The context before scaling; a file may say 0 where nothing is scaled by it."""
    return data.integer(
        ORIGINAL_CONTEXT if data.own.get(ORIGINAL_CONTEXT) != 0 and ORIGINAL_CONTEXT in data else CONTEXT
    )


def _shortest(stored: float, magnitude: float) -> float:
    """The product with the fewest digits that gives back the stored float32: what a configuration has said."""
    product = stored * magnitude
    for digits in range(1, 9):
        if np.float32(round(product, digits) / magnitude) == np.float32(stored):
            return round(product, digits)
    return product
