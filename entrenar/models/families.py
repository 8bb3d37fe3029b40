"""The families of models, a row each: what their files call things, and what the one decoder does for them.

`Family.model_type` is that of config.json, `Family.architecture` that of GGUF metadata. PARTS has the weights of a
decoder by the last part of their module's name. A family that needs nothing new of the decoder is a row of FAMILIES.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

REQUIRED = object()  # in `defaults`: a config.json must have the key


@dataclass(frozen=True)
class Part:
    """A module with weights: its GGUF name, and the sizes (keys of a format's SIZES) of its rows and columns."""

    gguf: str
    rows: str
    columns: str | None = None

    def sizes(self, axes: int) -> tuple[str, ...]:
        """The sizes of a matrix (2 axes) or vector (1) of this module."""
        return (self.rows,) if axes == 1 or self.columns is None else (self.rows, self.columns)


PARTS: dict[str, Part] = {
    "embed_tokens": Part("token_embd", "vocabulary", "hidden"),
    "norm": Part("output_norm", "hidden"),
    "lm_head": Part("output", "vocabulary", "hidden"),
    "input_layernorm": Part("attn_norm", "hidden"),
    "q_norm": Part("attn_q_norm", "head"),
    "k_norm": Part("attn_k_norm", "head"),
    "q_proj": Part("attn_q", "queries", "hidden"),
    "k_proj": Part("attn_k", "keys", "hidden"),
    "v_proj": Part("attn_v", "keys", "hidden"),
    "o_proj": Part("attn_output", "hidden", "queries"),
    "post_attention_layernorm": Part("ffn_norm", "hidden"),
    "gate_proj": Part("ffn_gate", "inner", "hidden"),
    "up_proj": Part("ffn_up", "inner", "hidden"),
    "down_proj": Part("ffn_down", "hidden", "inner"),
}


@dataclass(frozen=True)
class Family:
    """How a family's files and mathematics differ from those of the others."""

    model_type: str
    model_class: str  # of transformers
    architecture: str
    # ------ config.json, as transformers reads it
    defaults: Mapping[str, Any]  # what a key that is left out means, where that is not LLaMAConfig's default
    never_null: tuple[str, ...] = ()
    written: Mapping[str, Any] = field(default_factory=dict)  # keys of a saved config.json beside LLaMAConfig's fields
    heads_divide_hidden: bool = False  # hidden_size must be a multiple of num_attention_heads, even beside a head_dim
    undivided: str = ""  # the family with the same mathematics that takes any hidden_size
    default_window: int | None = None  # the sliding_window of a file without one
    window_switch: bool = False  # no window without use_sliding_window, none below max_window_layers
    layer_types_need_window: bool = False
    without_bias: tuple[str, ...] = ("attention_bias", "mlp_bias")  # keys that must be false
    # ------ the decoder
    title: str = "LLaMA"  # what messages call it
    biased: tuple[str, ...] = ()  # linears with a bias
    normed_heads: bool = False  # RMSNorm of each head of q and k before it is rotated
    # ------ GGUF
    gguf_names: Mapping[str, str] = field(default_factory=dict)  # modules that are called otherwise than in PARTS
    gguf_keys: Mapping[str, str] = field(default_factory=dict)  # further keys: the field of LLaMAConfig that each holds
    interleaved: tuple[str, ...] = ()  # linears whose rows are stored for an interleaved rotary embedding
    rope_factors: bool = False  # a file may hold rope_freqs, divisors of the rotary frequencies


_COMMON: dict[str, Any] = {
    "vocab_size": REQUIRED,
    "hidden_size": REQUIRED,
    "intermediate_size": REQUIRED,
    "num_hidden_layers": REQUIRED,
    "num_attention_heads": REQUIRED,
    "rms_norm_eps": 1e-6,
}
_ROWS = (
    Family(
        model_type="llama",
        model_class="LlamaForCausalLM",
        architecture="llama",
        defaults=_COMMON | {"max_position_embeddings": 2048},
        written={"attention_bias": False, "mlp_bias": False},
        heads_divide_hidden=True,
        undivided="mistral",
        interleaved=("q_proj", "k_proj"),
        rope_factors=True,
    ),
    Family(
        model_type="mistral",
        model_class="MistralForCausalLM",
        architecture="llama",
        defaults=_COMMON | {"max_position_embeddings": 131072, "num_key_value_heads": 8},
        never_null=("num_key_value_heads",),
        written={"sliding_window": None},
        default_window=4096,
        layer_types_need_window=True,
        interleaved=("q_proj", "k_proj"),
        rope_factors=True,
    ),
    Family(
        model_type="qwen2",
        model_class="Qwen2ForCausalLM",
        architecture="qwen2",
        title="Qwen2",
        defaults=_COMMON | {"max_position_embeddings": 32768, "num_key_value_heads": 32},
        never_null=("head_dim",),
        written={"use_sliding_window": False},
        default_window=4096,
        window_switch=True,
        without_bias=("mlp_bias",),
        biased=("q_proj", "k_proj", "v_proj"),
    ),
    Family(
        model_type="qwen3",
        model_class="Qwen3ForCausalLM",
        architecture="qwen3",
        title="Qwen3",
        defaults=_COMMON | {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
        never_null=("head_dim",),
        written={"attention_bias": False, "use_sliding_window": False},
        default_window=4096,
        window_switch=True,
        normed_heads=True,
    ),
)
FAMILIES: dict[str, Family] = {row.model_type: row for row in _ROWS}
ARCHITECTURES: dict[str, Family] = {}  # the first row of those that share one
for _row in _ROWS:
    ARCHITECTURES.setdefault(_row.architecture, _row)


def one_of(names: tuple[str, ...]) -> str:
    """'llama', 'mistral' or 'qwen2'."""
    quoted = [repr(name) for name in names]
    return " or ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))


def gguf_part(family: Family, part: str) -> str:
    """What GGUF files of the family call the module that Hugging Face calls `part`."""
    return family.gguf_names.get(part) or PARTS[part].gguf


def gguf_name(family: Family, name: str) -> str:
    """The GGUF name of a Hugging Face tensor."""
    *path, part, kind = name.split(".")
    layer = f"blk.{path[2]}." if ".layers." in name else ""
    return f"{layer}{gguf_part(family, part)}.{kind}"


def is_interleaved(family: Family, name: str) -> bool:
    """Whether GGUF files have the rows of this tensor (Hugging Face name) for an interleaved rotary embedding."""
    return name.split(".")[-2] in family.interleaved
