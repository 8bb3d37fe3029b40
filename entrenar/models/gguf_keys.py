"""The metadata of a GGUF file of architecture "llama", read as llama.cpp reads them.

Each key is used, or stands in UNUSED because llama.cpp gives it no meaning for this architecture, or is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entrenar.config import shown
from entrenar.errors import ConfigError

ARCHITECTURE = "llama"
NO_MODEL = {
    "adapter": "a LoRA adapter; give the model that it was trained over",
    "mmproj": "a multimodal projector; give the language model that it belongs to",
    "imatrix": "an importance matrix; give the model that it was measured on",
    "vocab": "a vocabulary; give a file with weights",
}
EMBEDDING, FEED_FORWARD, LAYERS = "llama.embedding_length", "llama.feed_forward_length", "llama.block_count"
HEADS, KEY_HEADS = "llama.attention.head_count", "llama.attention.head_count_kv"
KEY_LENGTH, VALUE_LENGTH = "llama.attention.key_length", "llama.attention.value_length"
CONTEXT, VOCABULARY = "llama.context_length", "llama.vocab_size"
EPSILON, ROPE_BASE = "llama.attention.layer_norm_rms_epsilon", "llama.rope.freq_base"
ROTATED, SCALING = "llama.rope.dimension_count", "llama.rope.scaling.type"
FACTOR, OLD_FACTOR = "llama.rope.scaling.factor", "llama.rope.scale_linear"
ATTENTION_FACTOR, CAUSAL = "llama.rope.scaling.attn_factor", "llama.attention.causal"
TOKENS = "tokenizer.ggml.tokens"
MOST_LAYERS = 10_000
# what they say of experts and of layers that predict further tokens; 0 is as good as absent
ZERO = {
    "llama.expert_count": "mixtures of experts",
    "llama.expert_used_count": "mixtures of experts",
    "llama.expert_group_count": "mixtures of experts",
    "llama.nextn_predict_layers": "layers that predict further tokens",
}
USED = frozenset(
    {EMBEDDING, FEED_FORWARD, LAYERS, HEADS, KEY_HEADS, KEY_LENGTH, VALUE_LENGTH, CONTEXT, VOCABULARY, EPSILON,
     ROPE_BASE, ROTATED, SCALING, FACTOR, OLD_FACTOR, ATTENTION_FACTOR, CAUSAL, *ZERO}
)  # fmt: skip
DESCRIPTIVE = frozenset({"llama.tensor_data_layout", "llama.rope.scaling.finetuned"})  # change nothing anywhere
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
    rope.freq_base_swa rope.scaling.alpha rope.scaling.original_context_length rope.scaling.yarn_attn_factor
    rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow rope.scaling.yarn_ext_factor
    rope.scaling.yarn_log_multiplier router_logit_softcapping shortconv.l_cache ssm.conv_kernel ssm.dt_b_c_rms
    ssm.group_count ssm.inner_size ssm.state_size ssm.time_step_rank swiglu_clamp_exp swiglu_clamp_shexp swin_norm
    time_decay_extra_dim time_mix_extra_dim token_shift_count use_parallel_residual wkv.head_size
"""
UNUSED = frozenset(f"llama.{name}" for name in _UNUSED.split())


def config_values(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields of LLaMAConfig that the metadata give, and a sentence for each key that is ignored.

    Raises ConfigError where the file is no model, of another architecture, lacks a key, or asks for what we lack.
    """
    _check_architecture(metadata)
    remarks = _ignored(metadata)
    layers = _integer(metadata, LAYERS, most=MOST_LAYERS)
    values: dict[str, Any] = {
        "hidden_size": _integer(metadata, EMBEDDING),
        "num_hidden_layers": layers,
        "intermediate_size": _per_layer(metadata, FEED_FORWARD, layers),
        "num_attention_heads": _per_layer(metadata, HEADS, layers),
        "max_position_embeddings": _integer(metadata, CONTEXT),
        "rms_norm_eps": _number(metadata, EPSILON),
        "vocab_size": _vocabulary(metadata, remarks),
    }
    if KEY_HEADS in metadata:
        values["num_key_value_heads"] = _per_layer(metadata, KEY_HEADS, layers)
    if ROPE_BASE in metadata:
        values["rope_theta"] = _number(metadata, ROPE_BASE)
    values |= _head_size(metadata, values) | _rope_scaling(metadata)
    return values | _special_tokens(metadata, values["vocab_size"], remarks), remarks


def _check_architecture(metadata: Mapping[str, Any]) -> None:
    kind = metadata.get("general.type")
    if isinstance(kind, str) and kind in NO_MODEL:
        raise ConfigError(f"general.type is {kind!r}, expected 'model': the file is {NO_MODEL[kind]}.")
    architecture = metadata.get("general.architecture")
    if architecture == "clip":
        raise ConfigError(f"general.architecture is 'clip', expected 'llama': the file is {NO_MODEL['mmproj']}.")
    if architecture != ARCHITECTURE:
        raise ConfigError(
            f"general.architecture is {shown(architecture)}, expected {ARCHITECTURE!r}; use a LLaMA model."
        )
    for key, what in ZERO.items():
        if metadata.get(key, 0) != 0:
            raise ConfigError(f"{key} is {shown(metadata[key])}, expected none or 0; {what} are not supported.")
    if metadata.get(CAUSAL, True) is not True:
        raise ConfigError(f"{CAUSAL} is {shown(metadata[CAUSAL])}, expected true; only causal attention is supported.")


def _ignored(metadata: Mapping[str, Any]) -> list[str]:
    """A remark for each key without a meaning; ConfigError for one that may have one that we do not know."""
    remarks = []
    for key in metadata:
        if not key.startswith("llama.") or key in USED or key in DESCRIPTIVE:
            continue
        if key not in UNUSED:
            raise ConfigError(
                f"{key} is no known key of the architecture 'llama' and may change what the model computes; use a "
                "file that llama.cpp's converter wrote, or a newer version of this program."
            )
        remarks.append(f"{key} is ignored, as llama.cpp ignores it for this architecture.")
    return remarks


def _present(metadata: Mapping[str, Any], key: str) -> Any:
    if metadata.get(key) is None:
        raise ConfigError(f"{key} is missing from the GGUF metadata; convert the model again.")
    return metadata[key]


def _integer(metadata: Mapping[str, Any], key: str, most: int = 2**31 - 1) -> int:
    value = _present(metadata, key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise ConfigError(f"{key} is {shown(value)}, expected an integer from 1 to {most}.")
    return value


def _number(metadata: Mapping[str, Any], key: str) -> float:
    value = _present(metadata, key)
    if not isinstance(value, float) or not 0 < value < float("inf"):
        raise ConfigError(f"{key} is {shown(value)}, expected a positive number stored as a float.")
    return value


def _per_layer(metadata: Mapping[str, Any], key: str, layers: int) -> int:
    """A count, which a file may have once for each layer."""
    value = _present(metadata, key)
    if not isinstance(value, list):
        return _integer(metadata, key)
    if len(value) != layers or any(other != value[0] for other in value):
        raise ConfigError(
            f"{key} is {shown(value)}, expected one number, or the same one for each of the {layers} layers."
        )
    return _integer({key: value[0]}, key)


def _vocabulary(metadata: Mapping[str, Any], remarks: list[str]) -> int:
    """The tokenizer's tokens count; the key counts where there are none."""
    tokens = metadata.get(TOKENS)
    if not isinstance(tokens, list) or not tokens:
        return _integer(metadata, VOCABULARY)
    if VOCABULARY in metadata and _integer(metadata, VOCABULARY) != len(tokens):
        remarks.append(
            f"{VOCABULARY} is {metadata[VOCABULARY]} and ignored: {TOKENS} has {len(tokens)} entries, and llama.cpp "
            "goes by those."
        )
    return len(tokens)


def _special_tokens(metadata: Mapping[str, Any], size: int, remarks: list[str]) -> dict[str, int]:
    """The ids that begin and end a text; llama.cpp too does without those that no token has."""
    found = {}
    for name in ("bos_token_id", "eos_token_id"):
        key = f"tokenizer.ggml.{name}"
        value = metadata.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < size:
            found[name] = value
        elif value is not None:
            remarks.append(f"{key} is {shown(value)} and ignored: the vocabulary has {size} tokens.")
    return found


def _head_size(metadata: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, int]:
    """`head_dim`; keys, values and rotation must agree on it."""
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    if KEY_LENGTH not in metadata and hidden % heads:
        raise ConfigError(
            f"{EMBEDDING} is {hidden}, expected a multiple of {HEADS} = {heads} where {KEY_LENGTH} is missing."
        )
    key_heads = values.get("num_key_value_heads", heads)
    if heads % key_heads:
        raise ConfigError(
            f"{HEADS} is {heads} and {KEY_HEADS} is {key_heads}, expected the first to be a multiple of the second."
        )
    size = _integer(metadata, KEY_LENGTH) if KEY_LENGTH in metadata else hidden // heads
    value_size = _integer(metadata, VALUE_LENGTH) if VALUE_LENGTH in metadata else hidden // heads
    if value_size != size:
        raise ConfigError(
            f"{KEY_LENGTH} is {_or_missing(metadata, KEY_LENGTH, size)} and {VALUE_LENGTH} is "
            f"{_or_missing(metadata, VALUE_LENGTH, value_size)}, expected the same for both; heads of two sizes are "
            "not supported."
        )
    if size % 2:
        raise ConfigError(f"{KEY_LENGTH} makes heads of {size}, expected an even number (rotary halves).")
    rotated = metadata.get(ROTATED, size)
    if rotated != size:
        raise ConfigError(
            f"{ROTATED} is {shown(rotated)}, expected the head size {size}; partial rotation is not supported."
        )
    return {"head_dim": size}


def _or_missing(metadata: Mapping[str, Any], key: str, meant: int) -> str:
    return str(meant) if key in metadata else f"missing (which means {meant})"


def _rope_scaling(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Scaling is linear where the type is missing, and by the legacy key where the factor is; 0 is none."""
    if metadata.get(ATTENTION_FACTOR, 1.0) != 1:
        raise ConfigError(
            f"{ATTENTION_FACTOR} is {shown(metadata[ATTENTION_FACTOR])}, expected none or 1; scaled rotations are not "
            "supported."
        )
    kind = metadata.get(SCALING, "linear")
    if kind not in ("none", "linear"):
        raise ConfigError(f"{SCALING} is {shown(kind)}, expected 'none' or 'linear'; use a model without it.")
    key = FACTOR if FACTOR in metadata else OLD_FACTOR
    if kind == "none" or key not in metadata or metadata[key] == 0:
        return {}
    factor = _number(metadata, key)
    return {} if factor == 1 else {"rope_scaling": {"rope_type": "linear", "factor": factor}}
