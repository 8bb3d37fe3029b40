"""config.json <-> the fields of LLaMAConfig: what is read, refused, said and ignored.

The rules are those of transformers 5 (`PreTrainedConfig`, `RotaryEmbeddingConfigMixin`, the families' own classes):
a null is not an absent key, and what is absent has the default of its model_type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from entrenar.config import nearest, shown
from entrenar.errors import ConfigError
from entrenar.models.families import (
    BIASES,
    FAMILIES,
    FULL,
    OWN,
    REQUIRED,
    SLIDING,
    Family,
    default_no_rope_layers,
    one_of,
    part_of,
)
from entrenar.models.generation import SETTINGS, words
from entrenar.models.hf_layers import PATTERN, local_rope, window_values
from entrenar.models.rotary import LISTS, ORIGINAL, SCALING_TYPES, ScalingType, is_positive

ROPE_TYPES = {"default": ScalingType(()), **SCALING_TYPES}
ACTIVATIONS = {"silu": ("silu", "swish"), "gelu_pytorch_tanh": ("gelu_pytorch_tanh",)}  # and their other names
# Read here, or without an effect on logits and training; any other key is said to be ignored.
READ = words(
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim "
    "max_position_embeddings rms_norm_eps rope_theta rope_scaling rope_parameters tie_word_embeddings "
    "initializer_range bos_token_id eos_token_id model_type attention_bias mlp_bias hidden_act sliding_window "
    "layer_types partial_rotary_factor original_max_position_embeddings attention_dropout per_layer_config "
    "quantization_config compression_config quantization pad_token_id is_causal "
    "transformers_weights text_config"
)
HARMLESS = words(
    "architectures dtype torch_dtype transformers_version name_or_path _name_or_path _commit_hash use_cache "
    "pretraining_tp output_hidden_states output_attentions return_dict use_return_dict "
    "chunk_size_feed_forward is_encoder_decoder is_decoder add_cross_attention id2label label2id num_labels "
    "problem_type attn_implementation _attn_implementation_autoset use_sliding_window max_window_layers "
    "tokenizer_class task_specific_params finetuning_task prefix tie_encoder_decoder torchscript use_bfloat16 "
    "pruned_heads tf_legacy_loss cross_attention_hidden_size decoder_start_token_id sep_token_id auto_map "
    "unsloth_version unsloth_fixed is_llama_config transformers.js_config _sliding_window_pattern"
)
# A model that was read and is saved writes these itself; every other key of its config.json is kept.
WRITTEN = (READ - {"attention_dropout"}) | words(
    "architectures dtype torch_dtype transformers_version _name_or_path auto_map"
)
ELSEWHERE = {  # keys by which transformers looks for the model in another place
    "transformers_weights": "another file than model.safetensors has the weights; rename that and remove the key.",
    "text_config": "the model is a part of a larger one; expected the folder of a language model alone.",
}
MULTIMODAL = {
    "gemma3": "gemma3_text",
    "mistral3": "ministral3",
}  # and the model_type of the language model that is a part of it
INTERVAL = "no_rope_layer_interval"
SIZES = {  # the keys that give each size of `families.PARTS`
    "vocabulary": "vocab_size",
    "hidden": "hidden_size",
    "inner": "intermediate_size",
    "queries": "num_attention_heads x head_dim",
    "keys": "num_key_value_heads x head_dim",
    "head": "head_dim",
    "queries, keys and values": "(num_attention_heads + 2 x num_key_value_heads) x head_dim",
    "gate and up": "2 x intermediate_size",
}
QUANTIZED_KEYS = {"quantization_config": "", "compression_config": "compressed-tensors", "quantization": "MLX"}


def values_of(table: Mapping[str, Any], where: str, fields: Mapping[str, Any], remarks: list[str]) -> dict[str, Any]:
    """The fields of LLaMAConfig that a config.json gives; appends to `remarks` what it says and we do not follow.

    Raises ConfigError, naming the key, for another architecture and for what would change the result if not read.
    """
    model_type = table.get("model_type", "llama")
    if isinstance(model_type, str) and model_type in MULTIMODAL:
        raise ConfigError(
            f"{where}: model_type is {model_type!r}, a model that sees images too; expected the folder of its language "
            f"model alone, whose model_type is {MULTIMODAL[model_type]!r}."
        )
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(f"{where}: model_type is {shown(model_type)}, expected {one_of(tuple(FAMILIES))}.")
    family = FAMILIES[model_type]
    refuse_quantized(table, where)
    for key, what in ELSEWHERE.items():
        if table.get(key) is not None:
            raise ConfigError(f"{where}: {key} is {shown(table[key])}: {what}")
    _refuse_other_layers(table, family, where)
    read = set(fields) - {"family"} - OWN | set(family.own)
    values = {name: table[name] for name in fields if name in table and name in read} | {"family": model_type}
    for name, default in family.defaults.items():
        if default is REQUIRED and values.get(name) is None:
            raise ConfigError(f"{where}: {name} is {'null' if name in values else 'missing'}, expected an integer.")
        values.setdefault(name, default)
    for name in family.never_null:
        if name in values and values[name] is None:
            kind = str(fields[name].type).split(" ")[0]
            expected = {"bool": "true or false", "float": "a number"}.get(kind, "an integer")
            raise ConfigError(f"{where}: {name} is null, expected {expected}; transformers refuses it too.")
    for name in family.floats:
        if table.get(name) is not None and not isinstance(table[name], float):
            raise ConfigError(
                f"{where}: {name} is {shown(table[name])}, expected a number with a decimal point, or null; "
                "transformers refuses it too."
            )
    _check_divides(values, family, where)
    if "no_rope_layers" in family.own:
        values["no_rope_layers"] = _no_rope_layers(table, where)
    values |= window_values(table, family, values, where)
    if family.local_rope:
        table, values["rope_local_base_freq"] = local_rope(table, family.defaults, where)
    values |= _rope(table, family, values["max_position_embeddings"], where, remarks)
    if table.get("attention_dropout"):
        remarks.append(f"{where}: attention_dropout is {shown(table['attention_dropout'])}; training goes without it.")
    asked = {key for key, value in table.items() if value not in (None, False)}  # the others ask for nothing
    heeded = {
        *family.own,
        *([INTERVAL] if "no_rope_layers" in family.own else []),
        *family.refused,
        family.activation_key,
        *([PATTERN] if family.local_rope else []),
    }
    unknown = sorted(asked - READ - HARMLESS - SETTINGS - heeded)
    remarks += [f"{where}: the key {shown(key)} is unknown and not read." for key in unknown]
    return values


def _no_rope_layers(table: Mapping[str, Any], where: str) -> Any:
    """The list of layers with a rotary embedding, or what the interval of those without makes of it."""
    layers, interval, given = table["num_hidden_layers"], table.get(INTERVAL, 4), table.get("no_rope_layers")
    least = 1 if given is None else -(2**31)
    for key, value in (("num_hidden_layers", layers), (INTERVAL, interval)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{where}: {key} is {shown(value)}, expected an integer of at least 1.")
    if given is not None:
        return given
    return default_no_rope_layers(layers, interval)


def shape_keys(family: Family, name: str, axes: int) -> str:
    """The keys of config.json that give the shape of this tensor."""
    return " and ".join(SIZES[size] for size in part_of(family, name).sizes(axes))


def in_terms_of_hf(text: str, table: Mapping[str, Any]) -> str:
    """A message about a field of LLaMAConfig with the key that this config.json has for it."""
    text = text.removeprefix("model.")
    key = "rope_scaling" if table.get("rope_scaling") else "rope_parameters"
    if text.startswith("rope_theta ") and "rope_theta" in (table.get(key) or {}):
        return f"{key}.{text}"
    if text.startswith("rope_scaling"):
        return key + text.removeprefix("rope_scaling")
    if "num_key_value_heads =" in text and "num_key_value_heads" not in table:
        return text.removesuffix(".") + ", which it has where config.json leaves it out."
    return text


def is_nf4(quantization: Any) -> bool:
    """Whether a quantization_config says that bitsandbytes has quantized the weights to NF4."""
    if not isinstance(quantization, Mapping) or quantization.get("load_in_8bit"):
        return False
    named = quantization.get("quant_method", "bitsandbytes") == "bitsandbytes"
    return named and bool(quantization.get("load_in_4bit")) and quantization.get("bnb_4bit_quant_type") == "nf4"


def refuse_quantized(table: Mapping[str, Any], where: str) -> None:
    """ConfigError where config.json says that the weights are quantized by a method that is not read, and by which."""
    for key, method in QUANTIZED_KEYS.items():
        found = table.get(key)
        if found is None:
            continue
        if isinstance(found, Mapping):
            if key == "quantization_config" and is_nf4(found):
                continue
            bitsandbytes = "bitsandbytes" if "load_in_4bit" in found or "load_in_8bit" in found else ""
            method = str(found.get("quant_method") or method or bitsandbytes or "an unnamed method")
            if found.get("load_in_4bit"):
                method += f" ({found.get('bnb_4bit_quant_type', 'fp4')})"
            elif found.get("load_in_8bit"):
                method += " (int8)"
        raise ConfigError(
            f"{where}: {key} says that the weights are quantized by {method or shown(found)}, which is not read; give "
            "the model in F32, F16 or BF16, or a GGUF file of it."
        )


def _refuse_other_layers(table: Mapping[str, Any], family: Family, where: str) -> None:
    if not table.get("is_causal", True):
        raise ConfigError(
            f"{where}: is_causal is {shown(table['is_causal'])}, with which every token sees those that follow it; "
            "expected true, a model that can write text."
        )
    for key in family.without_bias:
        if table.get(key, False) is not False:
            said = shown(table[key])
            raise ConfigError(f"{where}: {key} is {said}; linear layers with a bias are not supported, expected false.")
    key, activation = family.activation_key, family.activation
    if table.get(key, activation) not in ACTIVATIONS[activation]:
        raise ConfigError(
            f"{where}: {key} is {shown(table[key])}, expected {activation!r}, the only activation that is supported "
            f"where model_type is {family.model_type!r}."
        )
    for key, why in family.refused.items():
        if table.get(key) not in (None, False):
            raise ConfigError(f"{where}: {key} is {shown(table[key])}, {why}; expected false, or none.")
    if table.get("per_layer_config") is not None:
        raise ConfigError(f"{where}: per_layer_config is given; layers that differ in shape are not supported.")
    if table.get("return_dict", True) is False:
        raise ConfigError(f"{where}: return_dict is false, with which transformers cannot run the model; remove it.")


def _check_divides(values: Mapping[str, Any], family: Family, where: str) -> None:
    """LlamaConfig refuses a hidden_size that its heads do not divide, even where head_dim is given."""
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    if not family.heads_divide_hidden or not isinstance(hidden, int) or not isinstance(heads, int):
        return
    if heads > 0 and hidden % heads:
        raise ConfigError(
            f"{where}: hidden_size is {hidden}, expected a multiple of num_attention_heads = {heads} where model_type "
            f"is {family.model_type!r}."
        )


def _rope(table: Mapping[str, Any], family: Family, context: Any, where: str, remarks: list[str]) -> dict[str, Any]:
    """rope_theta and rope_scaling as transformers 5 finds them.

    A rope_scaling that is not empty replaces rope_parameters as a whole. A rope_theta inside wins over the top level's;
    an original_max_position_embeddings at the top level wins over the inside's, and the context is used for neither.
    """
    old, new = table.get("rope_scaling"), table.get("rope_parameters")
    key, rope = ("rope_scaling", old) if old else ("rope_parameters", new)
    if rope is None:
        rope = {}
    for name, part in ((key, rope), ("rope_parameters", new)):
        if part is not None and not isinstance(part, Mapping):
            raise ConfigError(f"{where}: {name} is {shown(part)}, expected an object.")
    if family.original_context and type(table.get(ORIGINAL, 1)) is not int:
        raise ConfigError(f"{where}: {ORIGINAL} is {shown(table[ORIGINAL])}, expected an integer.")
    nested = [name for name, value in rope.items() if isinstance(value, Mapping)]
    if nested:
        raise ConfigError(f"{where}: {key}.{nested[0]} is an object; a rotation for each layer type is not supported.")
    named = f"{key}.rope_type" if "rope_type" in rope else f"{key}.type"
    kind = rope.get("rope_type", rope.get("type", "default"))
    kind = family.rope_aliases.get(kind, kind) if isinstance(kind, str) else kind
    known = {name: row for name, row in ROPE_TYPES.items() if not family.rope_types or name in family.rope_types}
    if not isinstance(kind, str) or kind not in known:
        raise ConfigError(f"{where}: {named} is {shown(kind)}, which is not supported; {nearest(str(kind), known)}")
    theta = rope.get("rope_theta", table.get("rope_theta", family.defaults.get("rope_theta", 10000.0)))
    if old and isinstance(new, Mapping) and _scaling_alone(new) != _scaling_alone(old):
        remarks.append(
            f"{where}: rope_scaling is read and rope_parameters is not, as transformers does where both are."
        )
    if "rope_theta" in table and table["rope_theta"] != theta:
        remarks.append(
            f"{where}: rope_theta is {shown(table['rope_theta'])} at the top level and {shown(theta)} in {key}, which "
            "is used as transformers does."
        )
    row = ROPE_TYPES[kind]
    read = {*row.needed, *row.optional, *family.rope_keys, "rope_type", "type", "rope_theta", "partial_rotary_factor"}
    remarks += [
        f"{where}: {key}.{name} is not read by type {shown(kind)}." for name in sorted(set(map(str, rope)) - read)
    ]
    values = {"rope_theta": theta, "rope_scaling": None} | _partial_rotation(table, rope, family, where)
    for name in set(family.rope_keys) & OWN:
        if rope.get(name) is None:
            raise ConfigError(f"{where}: {key}.{name} is missing, expected a number; transformers needs it too.")
        values[name] = rope[name]
    if kind != "default":
        values["rope_scaling"] = _scaling(table, rope, kind, family, (key, context, where))
    return values


def _partial_rotation(table: Mapping[str, Any], rope: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    """partial_rotary_factor, that of the rope table before the one at the top level."""
    found = rope.get("partial_rotary_factor", table.get("partial_rotary_factor"))
    if "partial_rotary_factor" in family.own and found is not None:
        return {"partial_rotary_factor": found}
    for part in (table, rope):
        if part.get("partial_rotary_factor") not in (None, 1):
            found = part["partial_rotary_factor"]
            raise ConfigError(
                f"{where}: partial_rotary_factor is {shown(found)}; partial rotation is not supported where model_type "
                f"is {family.model_type!r}."
            )
    return {}


def _scaling(
    table: Mapping[str, Any], rope: Mapping[str, Any], kind: str, family: Family, place: tuple[str, Any, str]
) -> dict[str, Any]:
    """rope_scaling with the keys of its type; `place` is the rope table's name, the context and the file."""
    key, context, where = place
    row = SCALING_TYPES[kind]
    given = {ORIGINAL: context, **rope}
    if ORIGINAL not in rope and kind != rope.get("rope_type", rope.get("type")):
        raise ConfigError(
            f"{where}: {key}.{ORIGINAL} is missing, with which transformers cannot run the older name of {kind!r} "
            f"either; set {key}.type to {kind!r}."
        )
    is_null = ORIGINAL in rope and rope[ORIGINAL] is None  # transformers refuses it whatever the top level says
    if family.original_context or (ORIGINAL in table and not is_null):
        given[ORIGINAL] = table.get(ORIGINAL, family.original_context)
    if kind == "yarn" and "factor" in rope and rope["factor"] is None and is_positive(given[ORIGINAL]):
        given["factor"] = context / given[ORIGINAL]
    for name in row.needed:
        value = given.get(name)
        if not (isinstance(value, list) if name in LISTS else is_positive(value)):
            found = "missing" if name not in rope else shown(value)
            expected = "a list of positive numbers" if name in LISTS else "a positive number"
            named = "rope_type" if "rope_type" in rope else "type"
            raise ConfigError(
                f"{where}: {key}.{name} is {found}, expected {expected} where {key}.{named} is {shown(rope[named])}."
            )
    return {"rope_type": kind, **{name: given[name] for name in (*row.needed, *row.optional) if name in given}}


def _scaling_alone(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Without what the top level may hold too."""
    return {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}


def table_of(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json from the fields of LLaMAConfig, rotation in the spelling of transformers 4 and of 5."""
    family = FAMILIES[fields["family"]]
    scaling = fields["rope_scaling"] or {}
    rope = {"rope_type": "default", **scaling} | {"rope_theta": fields["rope_theta"]}
    own: dict[str, Any] = {}
    if "partial_rotary_factor" in family.own:
        own["partial_rotary_factor"] = rope["partial_rotary_factor"] = fields["partial_rotary_factor"] or 1.0
    if family.original_context:
        own[ORIGINAL] = scaling.get(ORIGINAL, family.original_context)
    if family.local_rope:
        theta = fields["rope_local_base_freq"] or fields["rope_theta"]
        fields = {**fields, "rope_local_base_freq": theta}
        rope = {FULL: rope, SLIDING: {"rope_type": "default", "rope_theta": theta}}
    in_rope = set(family.rope_keys) & OWN
    if in_rope:
        rope |= {name: fields[name] for name in in_rope}
        fields = {**fields, "rope_scaling": {**scaling, **{name: fields[name] for name in in_rope}}}
    left_out = {"family", "rope_frequency_factors"} | (OWN - set(family.own)) | in_rope
    return {
        "architectures": [family.model_class],
        "model_type": family.model_type,
        **family.written,
        **({"use_sliding_window": fields["sliding_window"] is not None} if family.window_switch else {}),
        family.activation_key: family.activation,
        **{name: value for name, value in fields.items() if name not in left_out},
        **own,
        **{name: bool(fields[name]) for name in BIASES if name in family.own},
        "rope_parameters": rope,
    }
