"""Which GGUF type each tensor of a written file has: the rules of llama.cpp's llama-quantize (src/llama-quant.cpp)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from entrenar.autograd.weight_types import gguf_weight_type
from entrenar.config import nearest, shown
from entrenar.errors import ConfigError
from entrenar.io.gguf_writer import block_of
from entrenar.models.config import LLaMAConfig
from entrenar.models.families import FAMILIES, gguf_name
from entrenar.models.file_types import FILE_TYPES, KEEP, FileType

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


KEPT_NUMBERS = {"Q2_K": 10, "Q3_K": 11, "IQ4_NL": 25, "IQ4_XS": 30}  # of the types that are only ever kept
FULL_PRECISION = ("F32", "F16", "BF16")
HEAD_TYPE = "Q6_K"
MORE_BITS = ("attn_v", "attn_qkv", "ffn_down")
NARROWER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # for rows that are no multiple of 256
LARGEST_SHARED = 80  # layers of the models of 70B, whose attn_v llama-quantize never gives fewer than 5 bits


def checked_type(name: str) -> str:
    """The type as FILE_TYPES or KEEP spell it; ConfigError where there is none."""
    found = {known.lower(): known for known in (*FILE_TYPES, KEEP)}.get(name.lower() if isinstance(name, str) else "")
    if found is None:
        if gguf_weight_type(str(name).upper()) is not None:
            raise ConfigError(
                f"type={shown(name)} is read and not written, but by {KEEP!r} where the model has it; expected one of "
                f"{', '.join((KEEP, *FILE_TYPES))}."
            )
        raise ConfigError(f"type={shown(name)} is unknown; {nearest(str(name), (*FILE_TYPES, KEEP))}")
    return found


def tensor_types(config: LLaMAConfig, type: str, stored: Mapping[str, str | None]) -> dict[str, str]:
    """The GGUF type of every weight by Hugging Face name; `stored` has those of the model's own weights (None: F32).

    `type` is a key of FILE_TYPES, or KEEP for the types of `stored`.
    """
    types, shapes = {}, config.parameter_shapes()
    if FAMILIES[config.family].gguf_head == "always":
        shapes.setdefault(HEAD, shapes[EMBEDDING])
    for name, shape in shapes.items():
        if len(shape) == 1:
            types[name] = "F32"
        elif type == KEEP:
            types[name] = stored[name] or "F32"
        else:
            types[name] = _matrix_type(config, name, shape[1], FILE_TYPES[type], HEAD not in shapes)
    return types


def file_type_number(types: Mapping[str, str], type: str) -> int:
    """general.file_type; where types are kept, that of what most tensors are."""
    if type != KEEP:
        return FILE_TYPES[type].number
    names = [name for name in types.values() if name != "F32"] or ["F32"]
    most = Counter(names).most_common(1)[0][0]
    return FILE_TYPES[most].number if most in FILE_TYPES else KEPT_NUMBERS[most]


def _matrix_type(config: LLaMAConfig, name: str, columns: int, file: FileType, tied: bool) -> str:
    """What llama-quantize makes of a matrix; `tied`: the embedding is the head."""
    if file.matrices in FULL_PRECISION:
        return file.matrices
    chosen = file.matrices
    part = gguf_name(FAMILIES[config.family], name).split(".")[-2]
    if part == "output" or (part == "token_embd" and tied):
        return _fitting("Q8_0" if chosen == "Q8_0" or columns % _block(chosen) else HEAD_TYPE, columns)
    if part in MORE_BITS and file.more and _has_more_bits(int(name.split(".")[2]), config):
        chosen = file.more
    elif part in ("attn_v", "attn_qkv") and chosen == "Q4_K" and _is_largest_shared(config):
        chosen = "Q5_K"
    return _fitting(chosen, columns)


def _has_more_bits(layer: int, config: LLaMAConfig) -> bool:
    """Whether a layer is among those whose attn_v and ffn_down have more bits."""
    layers = config.num_hidden_layers
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _is_largest_shared(config: LLaMAConfig) -> bool:
    return config.num_hidden_layers == LARGEST_SHARED and config.kv_heads < config.num_attention_heads


def _fitting(type: str, columns: int) -> str:
    """The type, or the next that rows of so many columns can have."""
    if columns % _block(type):
        type = NARROWER.get(type, type)
    return "F16" if columns % _block(type) else type


def _block(type: str) -> int:
    return block_of(type)[0]
