"""The families of models, a row each: what their files call things, and what the one decoder does for them.

`Family.model_type` is that of config.json, `Family.architecture` that of GGUF metadata. PARTS has the weights of a
decoder by the last part of their module's name. A family that needs nothing new of the decoder is a row of FAMILIES.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BIASES = ("attention_bias", "mlp_bias")  # keys by which all linears of attention, or of the MLP, have a bias
REQUIRED = object()  # in `defaults`: a config.json must have the key
SLIDING, FULL = "sliding_attention", "full_attention"
LAYER_TYPES = (SLIDING, FULL)


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
    floats: tuple[str, ...] = ()  # keys that transformers takes as a float or null alone
    written: Mapping[str, Any] = field(default_factory=dict)  # keys of a saved config.json beside LLaMAConfig's fields
    heads_divide_hidden: bool = False  # hidden_size must be a multiple of num_attention_heads, even beside a head_dim
    undivided: str = ""  # the family with the same mathematics that takes any hidden_size
    default_window: int | None = None  # the sliding_window of a file without one
    window_switch: bool = False  # no window without use_sliding_window, none below max_window_layers
    layer_types_need_window: bool = False
    rope_keys: tuple[str, ...] = ()  # of the rope table, beside those of its type; a field has the same name
    rope_types: tuple[str, ...] = ()  # those that its configuration takes; empty: all
    rope_aliases: Mapping[str, str] = field(default_factory=dict)  # older names of types
    original_context: int | None = None  # original_max_position_embeddings stands at the top level, with this default
    without_bias: tuple[str, ...] = BIASES  # keys that must be false
    activation_key: str = "hidden_act"
    refused: Mapping[str, str] = field(default_factory=dict)  # keys that must be left out, null or false, and why
    local_rope: bool = False  # layers with a window have a rotation of their own
    # ------ the decoder
    title: str = "LLaMA"  # what messages call it
    biased: tuple[str, ...] = ()  # linears with a bias
    normed_heads: bool = False  # RMSNorm of each head of q and k before it is rotated
    normed_projections: bool = False  # RMSNorm of q and of k before they are split into heads
    attention_norms: tuple[str | None, str | None] = ("input_layernorm", None)  # of its input; of its output
    mlp_norms: tuple[str | None, str | None] = ("post_attention_layernorm", None)
    norm_offset: bool = False  # norms multiply by 1 + weight; a GGUF file holds that sum
    activation: str = "silu"  # of the gated MLP, as config.json names it
    scaled_embedding: bool = False  # times sqrt(hidden_size)
    own: tuple[str, ...] = ()  # fields of LLaMAConfig that most families have not
    fused: bool = False  # q, k and v are one linear, gate and up another
    full_every: int = 0  # where layer_types is left out, every such layer is without a window; 0: none is
    parts: Mapping[str, Part] = field(default_factory=dict)  # modules that are not as in PARTS
    # ------ GGUF
    gguf_keys: Mapping[str, str] = field(default_factory=dict)  # further keys: the field of LLaMAConfig that each holds
    interleaved: tuple[str, ...] = ()  # linears whose rows are stored for an interleaved rotary embedding
    rope_factors: bool = False  # a file may hold rope_freqs, divisors of the rotary frequencies
    gguf_windows: bool = False  # llama.cpp has windows for this architecture
    gguf_yarn: bool = False  # llama.cpp reads the numbers of yarn scaling beside its factor
    gguf_head: str = "optional"  # whether a file has output.weight: "optional", "never" or "always"
    gguf_fixed: Mapping[str, Any] = field(default_factory=dict)  # keys that a file may have with this value alone
    gguf_biases: bool = True  # a file may hold the biases of attention_bias and mlp_bias
    gguf_square: bool = False  # llama.cpp takes heads for parts of hidden_size, whatever their size is said to be
    gguf_defaults: Mapping[str, Any] = field(default_factory=dict)  # fields whose keys a file may leave out
    gguf_large: int = 0  # with so many layers scores are scaled by hidden_size / num_attention_heads, not by head_dim
    long_factors: bool = False  # a file may hold rope_factors_short and rope_factors_long, those of longrope scaling


_COMMON: dict[str, Any] = {
    "vocab_size": REQUIRED,
    "hidden_size": REQUIRED,
    "intermediate_size": REQUIRED,
    "num_hidden_layers": REQUIRED,
    "num_attention_heads": REQUIRED,
    "rms_norm_eps": 1e-6,
}
_POST_NORM, _POST_FFW_NORM = Part("post_attention_norm", "hidden"), Part("post_ffw_norm", "hidden")
_GEMMA: dict[str, Any] = _COMMON | {
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_GEMMA_KEYS = {"attention.sliding_window": "sliding_window", "final_logit_softcapping": "final_logit_softcapping"}
_GEMMA_ROW: dict[str, Any] = {
    "heads_divide_hidden": True,
    "default_window": 4096,
    "never_null": ("num_key_value_heads", "head_dim", "query_pre_attn_scalar", "sliding_window"),
    "floats": ("attn_logit_softcapping", "final_logit_softcapping"),
    "activation_key": "hidden_activation",
    "activation": "gelu_pytorch_tanh",
    "refused": {"use_bidirectional_attention": "with which tokens see those that follow them"},
    "written": {"attention_bias": False},
    "attention_norms": ("input_layernorm", "post_attention_layernorm"),
    "mlp_norms": ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    "norm_offset": True,
    "scaled_embedding": True,
    "parts": {
        "post_attention_layernorm": _POST_NORM,
        "pre_feedforward_layernorm": Part("ffn_norm", "hidden"),
        "post_feedforward_layernorm": _POST_FFW_NORM,
    },
    "gguf_windows": True,
}
_ROWS = (
    Family(
        model_type="llama",
        model_class="LlamaForCausalLM",
        architecture="llama",
        defaults=_COMMON | {"max_position_embeddings": 2048},
        never_null=BIASES,
        without_bias=(),
        own=BIASES,
        heads_divide_hidden=True,
        undivided="mistral",
        interleaved=("q_proj", "k_proj"),
        rope_factors=True,
        long_factors=True,
    ),
    Family(
        model_type="mistral",
        model_class="MistralForCausalLM",
        architecture="llama",
        defaults=_COMMON | {"max_position_embeddings": 131072, "num_key_value_heads": 8},
        never_null=("num_key_value_heads",),
        default_window=4096,
        layer_types_need_window=True,
        own=("sliding_window",),
        interleaved=("q_proj", "k_proj"),
        rope_factors=True,
        long_factors=True,
    ),
    Family(
        model_type="ministral",
        model_class="MinistralForCausalLM",
        architecture="llama",
        title="Ministral",
        defaults=_COMMON | {"max_position_embeddings": 131072, "num_key_value_heads": 8, "head_dim": REQUIRED},
        never_null=("sliding_window",),
        default_window=4096,
        own=("sliding_window", "layer_types"),
        interleaved=("q_proj", "k_proj"),
        rope_factors=True,
        long_factors=True,
    ),
    Family(
        model_type="ministral3",
        model_class="Ministral3ForCausalLM",
        architecture="mistral3",
        title="Ministral 3",
        defaults=_COMMON
        | {
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 262144,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "pad_token_id": 11,
        },
        never_null=("head_dim",),
        rope_types=("yarn",),
        rope_keys=("llama_4_scaling_beta", "max_position_embeddings"),
        own=("sliding_window", "llama_4_scaling_beta"),
        interleaved=("q_proj", "k_proj"),
        gguf_keys={"attention.temperature_scale": "llama_4_scaling_beta"},
        gguf_yarn=True,
    ),
    Family(
        model_type="qwen2",
        model_class="Qwen2ForCausalLM",
        architecture="qwen2",
        title="Qwen2",
        defaults=_COMMON | {"max_position_embeddings": 32768, "num_key_value_heads": 32},
        never_null=("head_dim",),
        default_window=4096,
        window_switch=True,
        own=("sliding_window", "layer_types"),
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
        written={"attention_bias": False},
        default_window=4096,
        window_switch=True,
        own=("sliding_window", "layer_types"),
        normed_heads=True,
    ),
    Family(
        **_GEMMA_ROW,
        model_type="gemma2",
        model_class="Gemma2ForCausalLM",
        architecture="gemma2",
        title="Gemma 2",
        defaults=_GEMMA
        | {"max_position_embeddings": 8192, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        own=(
            "sliding_window",
            "layer_types",
            "query_pre_attn_scalar",
            "attn_logit_softcapping",
            "final_logit_softcapping",
        ),
        full_every=2,
        gguf_keys=_GEMMA_KEYS | {"attn_logit_softcapping": "attn_logit_softcapping"},
        gguf_defaults={
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        gguf_head="never",
        gguf_large=46,
    ),
    Family(
        **_GEMMA_ROW,
        model_type="gemma3_text",
        model_class="Gemma3ForCausalLM",
        architecture="gemma3",
        title="Gemma 3",
        defaults=_GEMMA | {"max_position_embeddings": 131072, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
        own=(
            "sliding_window",
            "layer_types",
            "query_pre_attn_scalar",
            "final_logit_softcapping",
            "rope_local_base_freq",
        ),
        normed_heads=True,
        full_every=6,
        local_rope=True,
        gguf_keys=_GEMMA_KEYS | {"rope.freq_base_swa": "rope_local_base_freq"},
        gguf_defaults={"rope_local_base_freq": 10000.0},
        gguf_large=62,
    ),
    Family(
        model_type="olmo2",
        model_class="Olmo2ForCausalLM",
        architecture="olmo2",
        title="OLMo 2",
        defaults=_COMMON
        | {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "pad_token_id": 1, "eos_token_id": 50279},
        never_null=("head_dim",),
        written={"attention_bias": False},
        normed_projections=True,
        attention_norms=(None, "post_attention_layernorm"),
        mlp_norms=(None, "post_feedforward_layernorm"),
        parts={
            "post_attention_layernorm": _POST_NORM,
            "post_feedforward_layernorm": _POST_FFW_NORM,
            "q_norm": Part("attn_q_norm", "queries"),
            "k_norm": Part("attn_k_norm", "keys"),
        },
        gguf_head="always",
        gguf_fixed={"attention.sliding_window": 0},  # with windows it is an OLMo 3
    ),
    Family(
        model_type="smollm3",
        model_class="SmolLM3ForCausalLM",
        architecture="smollm3",
        title="SmolLM3",
        defaults=_COMMON
        | {
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "rope_theta": 2e6,
            "tie_word_embeddings": True,
            "pad_token_id": 128004,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        },
        written={"use_sliding_window": False},
        never_null=("head_dim", *BIASES),
        window_switch=True,
        without_bias=(),
        own=(*BIASES, "no_rope_layers"),
        gguf_biases=False,
        interleaved=("q_proj", "k_proj"),
    ),
    Family(
        model_type="phi3",
        model_class="Phi3ForCausalLM",
        architecture="phi3",
        title="Phi-3",
        defaults=_COMMON
        | {
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "pad_token_id": 32000,
            "bos_token_id": 1,
            "eos_token_id": 32000,
        },
        never_null=("head_dim",),
        rope_types=("default", "longrope"),
        rope_aliases={"su": "longrope", "yarn": "longrope"},
        original_context=4096,
        own=("sliding_window", "partial_rotary_factor"),
        fused=True,
        parts={
            "qkv_proj": Part("attn_qkv", "queries, keys and values", "hidden"),
            "gate_up_proj": Part("ffn_up", "gate and up", "hidden"),
        },
        long_factors=True,
        gguf_square=True,
    ),
    Family(
        model_type="granite",
        model_class="GraniteForCausalLM",
        architecture="granite",
        title="Granite",
        defaults=_COMMON
        | {
            "max_position_embeddings": 2048,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "attention_multiplier": 1.0,
            "logits_scaling": 1.0,
        },
        never_null=(
            *BIASES,
            "head_dim",
            "embedding_multiplier",
            "residual_multiplier",
            "attention_multiplier",
            "logits_scaling",
        ),
        without_bias=(),
        own=(*BIASES, "embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"),
        interleaved=("q_proj", "k_proj"),
        rope_factors=True,
        long_factors=True,
        gguf_keys={
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "attention.scale": "attention_multiplier",
            "logit_scale": "logits_scaling",
        },
        gguf_fixed={"rope.scaling.finetuned": True},
    ),
)
OWN = frozenset(name for row in _ROWS for name in row.own)  # fields of LLaMAConfig that only some families have
FAMILIES: dict[str, Family] = {row.model_type: row for row in _ROWS}
ARCHITECTURES: dict[str, Family] = {}  # the first row of those that share one
for _row in _ROWS:
    ARCHITECTURES.setdefault(_row.architecture, _row)


def one_of(names: tuple[str, ...]) -> str:
    """'llama', 'mistral' or 'qwen2'."""
    quoted = [repr(name) for name in names]
    return " or ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))


def default_layer_types(family: Family, layers: int, full_every: int | None = None) -> list[str]:
    """The layers with a window, and those without, where nothing says which they are."""
    every = family.full_every if full_every is None else full_every
    return [FULL if every and (layer + 1) % every == 0 else SLIDING for layer in range(layers)]


def default_no_rope_layers(layers: int, interval: int = 4) -> list[int]:
    """1 for a layer with a rotary embedding, 0 for each `interval`-th without."""
    return [int((layer + 1) % interval != 0) for layer in range(layers)]


def part_of(family: Family, name: str) -> Part:
    """The module of a Hugging Face tensor."""
    part = name.split(".")[-2]
    return family.parts.get(part) or PARTS[part]


def gguf_name(family: Family, name: str) -> str:
    """The GGUF name of a Hugging Face tensor."""
    *path, _, kind = name.split(".")
    layer = f"blk.{path[2]}." if ".layers." in name else ""
    return f"{layer}{part_of(family, name).gguf}.{kind}"


def has_offset(family: Family, name: str) -> bool:
    """Whether GGUF files hold 1 + this tensor (Hugging Face name)."""
    return family.norm_offset and name.split(".")[-2].endswith("norm")


def is_interleaved(family: Family, name: str) -> bool:
    """Whether GGUF files have the rows of this tensor (Hugging Face name) for an interleaved rotary embedding."""
    return name.split(".")[-2] in family.interleaved
