"""LLaMAConfig -> the metadata of a GGUF file: what `entrenar.models.gguf_keys` reads, written by the family's row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from entrenar.config import shown
from entrenar.errors import ConfigError
from entrenar.models.config import LLaMAConfig
from entrenar.models.families import BIASES, FAMILIES, SLIDING, default_layer_types, default_no_rope_layers
from entrenar.models.gguf_keys import (
    ATTENTION_FACTOR,
    CONTEXT,
    EMBEDDING,
    EPSILON,
    FACTOR,
    FEED_FORWARD,
    HEADS,
    KEY_HEADS,
    KEY_LENGTH,
    LAYERS,
    LONG_FACTORS,
    ORIGINAL_CONTEXT,
    ROPE_BASE,
    ROPE_FACTORS,
    ROTATED,
    SCALING,
    TOKENS,
    VALUE_LENGTH,
    VOCABULARY,
    WINDOW,
    WINDOW_PATTERN,
    YARN_KEYS,
    query_scalar,
)
from entrenar.models.rotary import ORIGINAL, attention_factor, inverse_frequencies, llama3_factors, yarn_magnitude

NO_TOKENIZER = {"tokenizer.ggml.model": "no_vocab"}  # as llama.cpp says that a file has none
# written by whoever makes a file: those of another file say what is no longer so
OWN = frozenset(
    {"general.architecture", "general.type", "general.file_type", "general.quantization_version", "general.alignment"}
)


def architecture_metadata(config: LLaMAConfig) -> dict[str, Any]:
    """The keys of the architecture: the shape, the rotary embedding, and what the family's row adds.

    Where llama.cpp has no windows, the file's context is the window: within it no token has one. Raises ConfigError for
    a model of which llama.cpp would compute something else.
    """
    family = FAMILIES[config.family]
    check_gguf(config)
    values: dict[str, Any] = {
        CONTEXT: config.max_position_embeddings if family.gguf_windows else shortest_window(config),
        EMBEDDING: config.hidden_size,
        LAYERS: config.num_hidden_layers,
        FEED_FORWARD: config.intermediate_size,
        HEADS: config.num_attention_heads,
        KEY_HEADS: config.kv_heads,
        KEY_LENGTH: config.head_size,
        VALUE_LENGTH: config.head_size,
        EPSILON: float(config.rms_norm_eps),
        ROPE_BASE: float(config.rope_theta),
        ROTATED: config.rotated,
        **_rope_scaling(config),
        VOCABULARY: config.vocab_size,
    }
    for key, field in family.gguf_keys.items():
        value = getattr(config, field)
        if value is not None:
            values[key] = float(value) if "float" in str(config.__dataclass_fields__[field].type) else value
    types = config.layer_types or []
    if family.gguf_windows and SLIDING not in types and "sliding_window" not in family.gguf_defaults:
        del values[WINDOW]
    elif family.gguf_windows and types != default_layer_types(family, len(types)):
        values[WINDOW_PATTERN] = [kind == SLIDING for kind in types]
    return {f"{family.architecture}.{key}": value for key, value in values.items()}


def shortest_window(config: LLaMAConfig) -> int:
    """The most tokens that no window hides anything of."""
    windows = (config.window(layer) for layer in range(config.num_hidden_layers))
    return min((size for size in windows if size is not None), default=config.max_position_embeddings)


def window_sentences(config: LLaMAConfig) -> list[str]:
    """For the person who runs it: that the file's context is the model's window, where llama.cpp has none."""
    window, context = shortest_window(config), config.max_position_embeddings
    family = FAMILIES[config.family]
    if family.gguf_windows or window == context:
        return []
    return [
        f"The file's context length is the model's window of {window} tokens, not its context of {context}: llama.cpp "
        f"has no windows for the architecture {family.architecture!r}."
    ]


def check_gguf(config: LLaMAConfig) -> None:
    """ConfigError, naming the field, for a model of which llama.cpp would compute something else."""
    family = FAMILIES[config.family]
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    wanted: dict[str, Any] = {name: "a number" for name in family.gguf_defaults if name != "sliding_window"}
    if "query_pre_attn_scalar" in family.own:
        wanted["query_pre_attn_scalar"] = query_scalar(family, fields)
    if family.gguf_head == "never":
        wanted["tie_word_embeddings"] = True
    if not family.gguf_biases:
        wanted |= dict.fromkeys(BIASES)
    if "no_rope_layers" in family.own:
        wanted["no_rope_layers"] = default_no_rope_layers(config.num_hidden_layers)
    if family.gguf_head == "always" or family.gguf_square:
        wanted["head_dim"] = config.hidden_size / config.num_attention_heads
    for name, value in wanted.items():
        if (fields[name] is None) if value == "a number" else (fields[name] != value):
            raise ConfigError(
                f"model.{name} is {shown(fields[name])}, and llama.cpp runs the architecture {family.architecture!r} "
                f"with {shown(value) if value != 'a number' else value} only; save a Hugging Face directory."
            )


def _rope_scaling(config: LLaMAConfig) -> dict[str, Any]:
    """What is said by keys; the divisors of llama3 and longrope scaling are tensors (`rope_tensors`).

    Raises ConfigError for what llama.cpp cannot be told.
    """
    scaling = config.rope_scaling
    kind = scaling["rope_type"] if scaling else None
    if scaling is None or kind == "llama3":
        return {}
    if kind == "dynamic":
        raise ConfigError(
            "model.rope_scaling is dynamic, which GGUF files have no key for and llama.cpp does not compute; save a "
            "Hugging Face directory."
        )
    if kind == "linear":
        return {SCALING: kind, FACTOR: float(scaling["factor"])}
    factor = attention_factor(scaling, config.max_position_embeddings)
    if kind == "longrope":
        return {SCALING: kind, ORIGINAL_CONTEXT: int(scaling[ORIGINAL]), ATTENTION_FACTOR: factor}
    values = {SCALING: kind, FACTOR: float(scaling["factor"]), ORIGINAL_CONTEXT: int(scaling[ORIGINAL])}
    if FAMILIES[config.family].gguf_yarn:
        values |= _yarn_numbers(scaling)
        scaling = {key: value for key, value in scaling.items() if key not in ("beta_fast", "beta_slow")}
    for key, fixed in (("beta_fast", 32), ("beta_slow", 1), ("truncate", True)):
        if scaling.get(key, fixed) != fixed:
            raise ConfigError(
                f"model.rope_scaling.{key} is {shown(scaling[key])}, and llama.cpp computes yarn scaling of the "
                f"architecture {FAMILIES[config.family].architecture!r} with {shown(fixed)} alone; save a Hugging Face "
                "directory."
            )
    if any(key.endswith("log_multiplier") for key in values):
        return values
    if factor != float(np.float32(yarn_magnitude(scaling["factor"]))):
        if FAMILIES[config.family].local_rope:
            raise ConfigError(
                f"model.rope_scaling multiplies cosines and sines by {factor:g}, which llama.cpp would do in layers "
                "with a window too; save a Hugging Face directory."
            )
        values[ATTENTION_FACTOR] = factor / yarn_magnitude(scaling["factor"])
    return values


def _yarn_numbers(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """The further keys of an architecture that heeds them; a multiplier where llama.cpp's rule for it is this one's."""
    numbers = {key: float(scaling[name]) for key, name in YARN_KEYS.items() if scaling.get(name)}
    if scaling.get("mscale") != 1 or scaling.get("attention_factor"):
        numbers.pop("rope.scaling.yarn_log_multiplier", None)
    return numbers


def rope_tensors(config: LLaMAConfig) -> dict[str, np.ndarray]:
    """The divisors of the rotary frequencies (rotated / 2,), float32, that a file holds, by the tensor's name."""
    scaling = config.rope_scaling
    if scaling is not None and scaling["rope_type"] == "longrope":
        if not FAMILIES[config.family].long_factors:
            raise _no_place(config, "longrope")
        return {name: np.asarray(scaling[key], np.float32) for key, name in LONG_FACTORS.items()}
    factors = rope_factors(config)
    return {} if factors is None else {ROPE_FACTORS: factors}


def _no_place(config: LLaMAConfig, kind: str) -> ConfigError:
    return ConfigError(
        f"model.rope_scaling is {kind}, and GGUF files of the architecture "
        f"{FAMILIES[config.family].architecture!r} have no place for it; save a Hugging Face directory."
    )


def rope_factors(config: LLaMAConfig) -> np.ndarray | None:
    """The divisors of the rotary frequencies (head_dim / 2,), float32, that a file holds as a tensor; None for none."""
    scaling = config.rope_scaling
    if config.rope_frequency_factors is not None:
        factors = np.asarray(config.rope_frequency_factors, np.float32)
    elif scaling is not None and scaling["rope_type"] == "llama3":
        factors = llama3_factors(inverse_frequencies(config.rotated, config.rope_theta, None), scaling)
    else:
        return None
    if not FAMILIES[config.family].rope_factors:
        raise _no_place(config, scaling["rope_type"] if scaling else "by factors")
    return factors


def checked_tokenizer(block: Mapping[str, Any], vocab_size: int) -> Mapping[str, Any]:
    """The tokenizer.* keys; ConfigError where their tokens are not those of a model with `vocab_size` of them."""
    tokens = block.get(TOKENS)
    if tokens is not None and len(tokens) != vocab_size:
        raise ConfigError(
            f"{TOKENS} has {len(tokens)} entries, and the model's embedding {vocab_size} rows; give the model its own "
            "tokenizer."
        )
    return block


def kept_metadata(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(general, tokenizer): what a model that was loaded from a file with these metadata keeps of them."""
    general = {key: value for key, value in metadata.items() if key.startswith("general.") and key not in OWN}
    tokenizer = {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}
    return general, tokenizer
