"""LLaMAConfig: the shape of a model, from TOML, config.json or GGUF metadata; exact counts, no allocation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from entrenar.config import (
    BASE_KEYS,
    SECTIONS,
    check_dataclass,
    from_table,
    load_toml,
    nearest,
    option,
    shown,
    without,
)
from entrenar.errors import ConfigError
from entrenar.io.json_file import read_json_object
from entrenar.models.decoder import linear_shapes, weight_shapes
from entrenar.models.families import (
    BIASES,
    FAMILIES,
    FULL,
    LAYER_TYPES,
    OWN,
    SLIDING,
    Family,
    default_layer_types,
    default_no_rope_layers,
    one_of,
)
from entrenar.models.gguf_keys import config_values
from entrenar.models.hf_config import in_terms_of_hf, table_of, values_of
from entrenar.models.rotary import (
    ORIGINAL,
    RotaryAngles,
    checked_scaling,
    context_of,
    largest_angle,
    rotation,
    scaling_of_factors,
    smallest_divisor,
    span,
)


@dataclass
class LLaMAConfig:
    """The architecture of a LLaMA-family model, with Hugging Face's names. Raises ConfigError for impossible shapes."""

    family: str = option("llama", help="kind of decoder", choices=tuple(FAMILIES))
    vocab_size: int = option(32000, help="entries of the vocabulary", unit="tokens", minimum=1)
    hidden_size: int = option(4096, help="width of the residual stream", minimum=1)
    intermediate_size: int = option(11008, help="width inside the feed-forward layers", minimum=1)
    num_hidden_layers: int = option(32, help="decoder layers", minimum=1, maximum=10_000)
    num_attention_heads: int = option(32, help="query heads", minimum=1)
    num_key_value_heads: int | None = option(None, help="key and value heads; unset is one per query head", minimum=1)
    head_dim: int | None = option(None, help="width of a head; unset is hidden_size / num_attention_heads", minimum=2)
    max_position_embeddings: int = option(4096, help="longest sequence", unit="tokens", minimum=1)
    rms_norm_eps: float = option(1e-5, help="added to the mean square under the root of RMSNorm", above=0)
    rope_theta: float = option(10000.0, help="base of the rotary frequencies", above=0)
    rope_scaling: dict[str, Any] | None = option(
        None, help="rotary scaling as config.json spells it (linear, dynamic, llama3, yarn, longrope)"
    )
    partial_rotary_factor: float | None = option(
        None, help="part of a head that is rotated; unset is all of it", above=0, maximum=1
    )
    rope_frequency_factors: list[float] | None = option(
        None, help="divisors of the rotary frequencies (GGUF rope_freqs)"
    )
    rope_local_base_freq: float | None = option(
        None, help="rope_theta of layers with a window, where it differs", above=0
    )
    sliding_window: int | None = option(None, help="keys that a token sees in layers with a window", minimum=1)
    layer_types: list[str] | None = option(
        None,
        help="for each layer sliding_attention (it has the window) or full_attention; unset is as the family has it",
    )
    query_pre_attn_scalar: int | None = option(
        None, help="attention scores are divided by its root; unset is head_dim", minimum=1
    )
    embedding_multiplier: float | None = option(None, help="what embeddings are multiplied by", above=0)
    residual_multiplier: float | None = option(
        None, help="what is added to the residual stream is multiplied by", above=0
    )
    attention_multiplier: float | None = option(
        None, help="what attention scores are multiplied by; unset is 1 / sqrt(head_dim)", above=0
    )
    logits_scaling: float | None = option(None, help="what logits are divided by", above=0)
    no_rope_layers: list[int] | None = option(
        None, help="for each layer 1, or 0 where it has no rotary embedding; unset is 0 in every fourth"
    )
    attention_bias: bool | None = option(None, help="whether q, k, v and o have biases; false is as good as unset")
    mlp_bias: bool | None = option(None, help="whether gate, up and down have biases; false is as good as unset")
    attn_logit_softcapping: float | None = option(None, help="bound of attention scores, c tanh(score / c)", above=0)
    final_logit_softcapping: float | None = option(None, help="bound of logits, c tanh(logit / c)", above=0)
    llama_4_scaling_beta: float | None = option(
        None, help="queries are multiplied by 1 + beta ln(1 + position // original context) (Ministral 3)", minimum=0
    )
    tie_word_embeddings: bool = option(False, help="whether the head is the embedding matrix")
    initializer_range: float = option(0.02, help="standard deviation of random initial weights", above=0)
    bos_token_id: int | None = option(None, help="token that begins a text", minimum=0)
    eos_token_id: int | list[int] | None = option(None, help="token that ends a text", minimum=0)
    pad_token_id: int | None = option(
        None, help="token whose embedding takes no gradient; below 0 it is counted from the end"
    )

    def __post_init__(self) -> None:
        check_dataclass(self, "model")
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.num_attention_heads % self.kv_heads:
            raise ConfigError(
                f"model.num_attention_heads is {self.num_attention_heads}, expected a multiple of "
                f"num_key_value_heads = {self.num_key_value_heads}."
            )
        family = FAMILIES[self.family]
        if family.undivided and self.hidden_size % self.num_attention_heads:
            self.family = family.undivided  # transformers' own class refuses such a shape
            family = FAMILIES[self.family]
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                raise ConfigError(
                    f"model.hidden_size is {self.hidden_size}, expected a multiple of num_attention_heads = "
                    f"{self.num_attention_heads}, or set head_dim."
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.head_size % 2:
            raise ConfigError(f"model.head_dim is {self.head_size}, expected an even number (rotary halves).")
        ids = self.eos_token_id
        if isinstance(ids, list) and not (ids and all(index >= 0 for index in ids)):
            raise ConfigError(f"model.eos_token_id is {shown(ids)}, expected token ids, at least one and none below 0.")
        pad = self.pad_token_id
        if pad is not None and not -self.vocab_size <= pad < self.vocab_size:
            raise ConfigError(
                f"model.pad_token_id is {pad}, and the model has {self.vocab_size} tokens, so that transformers "
                "refuses it too; set it to null, or add a row for the token to the model."
            )
        for name in BIASES:
            if getattr(self, name) is False:
                setattr(self, name, None)
        self._check_own(family)
        self._check_rotated()
        if family.local_rope and self.rope_local_base_freq is None:
            self.rope_local_base_freq = self.rope_theta
        if "query_pre_attn_scalar" in family.own and self.query_pre_attn_scalar is None:
            self.query_pre_attn_scalar = self.head_size
        if "attention_multiplier" in family.own:
            self._fill_multipliers()
        self._check_layer_types(family)
        self._check_no_rope_layers(family)
        self._check_rope_factors()
        if self.rope_scaling is not None:
            self.rope_scaling = checked_scaling(self.rope_scaling, self.rotated, self.rope_theta)
        self._check_angles()
        if "llama_4_scaling_beta" in family.own:
            self.llama_4_scaling_beta = self.llama_4_scaling_beta or 0.0
            if self.llama_4_scaling_beta and self.rope_scaling is None:
                raise ConfigError(
                    f"model.llama_4_scaling_beta is {self.llama_4_scaling_beta} and model.rope_scaling is unset, whose "
                    f"{ORIGINAL} it counts by; set it."
                )

    def _check_own(self, family: Family) -> None:
        """Fields that only some families have are left to those; the others could not be saved with them."""
        for name in sorted(OWN - set(family.own)):
            if getattr(self, name) is not None:
                raise ConfigError(
                    f"model.{name} is {shown(getattr(self, name))}, which a {family.title} has not; leave it out."
                )

    def _fill_multipliers(self) -> None:
        """Those that are unset: as good as none."""
        neutral = {"attention_multiplier": self.head_size**-0.5}
        neutral |= dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling"), 1.0)
        for name, value in neutral.items():
            if getattr(self, name) is None:
                setattr(self, name, value)

    def _check_layer_types(self, family: Family) -> None:
        if "layer_types" not in family.own:
            return
        layers = self.num_hidden_layers
        if self.layer_types is None and self.sliding_window is not None:
            self.layer_types = default_layer_types(family, layers)
        elif "sliding_window" in family.never_null and SLIDING not in (self.layer_types or ()):
            self.layer_types = self.layer_types or [FULL] * layers
            self.sliding_window = family.default_window
        types = self.layer_types
        if types is not None and len(types) != layers:
            raise ConfigError(f"model.layer_types has {len(types)} entries, expected num_hidden_layers = {layers}.")
        for kind in types or ():
            if kind not in LAYER_TYPES:
                raise ConfigError(f"model.layer_types has {shown(kind)}; {nearest(str(kind), LAYER_TYPES)}")
        if types is not None and SLIDING in types and self.sliding_window is None:
            raise ConfigError(
                f"model.sliding_window is unset, and layer_types has {SLIDING!r}; expected the number of keys that "
                "such a layer sees."
            )

    def _check_no_rope_layers(self, family: Family) -> None:
        """One for each layer; transformers takes a longer list too."""
        if "no_rope_layers" not in family.own:
            return
        layers = self.num_hidden_layers
        if self.no_rope_layers is None:
            self.no_rope_layers = default_no_rope_layers(layers)
        if len(self.no_rope_layers) < layers or set(self.no_rope_layers) - {0, 1}:
            raise ConfigError(
                f"model.no_rope_layers is {shown(self.no_rope_layers)}, expected 0 or 1 for each of {layers} layers."
            )
        self.no_rope_layers = self.no_rope_layers[:layers]

    def _check_angles(self) -> None:
        """Rotary angles are finite at every position: numbers near the ends of float64 make infinities and NaN."""
        scaling, factors = self.rope_scaling, self.rope_frequency_factors
        divisors = {
            "rope_theta": 1.0,
            "rope_scaling": smallest_divisor(scaling),
            "rope_frequency_factors": min(factors) if factors else 1.0,
        }
        for name, divisor in divisors.items():
            angle = largest_angle(self.rotated, self.rope_theta, divisor, self.context)
            if not math.isfinite(angle):
                raise ConfigError(
                    f"model.{name} is {shown(getattr(self, name))}, with which rotary angles are not finite; expected "
                    "larger numbers."
                )

    def _check_rotated(self) -> None:
        """What is rotated of a head has halves too."""
        if self.rotated < 2 or self.rotated % 2:
            raise ConfigError(
                f"model.partial_rotary_factor is {shown(self.partial_rotary_factor)}, which rotates {self.rotated} of "
                f"the {self.head_size} dimensions of a head; expected an even number of them."
            )

    def _check_rope_factors(self) -> None:
        factors = self.rope_frequency_factors
        if factors is not None and (len(factors) != self.rotated // 2 or not all(0 < f < math.inf for f in factors)):
            raise ConfigError(
                f"model.rope_frequency_factors is {shown(factors)}, expected {self.rotated // 2} positive numbers."
            )

    # ------------------------------------------------------------------ files
    @classmethod
    def from_file(cls, path: str | Path, hint: Callable[[str], str | None] | None = None) -> LLaMAConfig:
        """The `[model]` section of a TOML file; ConfigError for an unknown key or section, a wrong type or range.

        `hint` may have a sentence for a key that is not known.
        """
        table = load_toml(path)
        for section in table:
            if section not in SECTIONS:
                raise ConfigError(f"{path}: [{section}] is no known section; {nearest(section, SECTIONS)}")
        if "model" not in table:
            raise ConfigError(f"{path}: has no [model] section.")
        try:
            section = table["model"]
            shape = section if not isinstance(section, dict) else without(section, BASE_KEYS)
            return from_table(cls, shape, "model", hint)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def from_hf(cls, source: str | Path | Mapping[str, Any], remarks: list[str] | None = None) -> LLaMAConfig:
        """From a Hugging Face config.json (path or its content), as transformers 5 reads it.

        `remarks` receives a sentence for each key that has an effect elsewhere and none here. Raises ConfigError for
        another architecture and for keys that would change the result.
        """
        where = "config.json" if isinstance(source, Mapping) else str(source)
        table = source if isinstance(source, Mapping) else read_json_object(Path(source), "a Hugging Face config.json")
        values = values_of(table, where, cls.__dataclass_fields__, remarks if remarks is not None else [])
        try:
            return from_table(cls, values, "model")
        except ConfigError as error:
            raise ConfigError(f"{where}: {in_terms_of_hf(str(error), table)}") from error

    def to_hf(self) -> dict[str, Any]:
        """The content of a config.json that transformers 4 and 5 read.

        Raises ConfigError for a rotation that it cannot express: the factors of a GGUF file, or a type of rope_scaling
        that transformers does not take for this family.
        """
        self._check_rope_type()
        return table_of({name: getattr(self, name) for name in self.__dataclass_fields__} | self._scaling_of_factors())

    def _check_rope_type(self) -> None:
        family, kind = FAMILIES[self.family], (self.rope_scaling or {"rope_type": "default"})["rope_type"]
        if family.rope_types and kind not in family.rope_types:
            raise ConfigError(
                f"model.rope_scaling has the type {kind!r}, expected {one_of(family.rope_types)}, without which "
                f"transformers cannot read a config.json of a {family.title}; set it, or keep an adapter over the base."
            )

    def _scaling_of_factors(self) -> dict[str, Any]:
        """The rope_scaling with the frequencies of `rope_frequency_factors`; nothing where there are none."""
        if self.rope_frequency_factors is None:
            return {}
        scaling = None if self.rope_scaling else scaling_of_factors(self.rope_frequency_factors, self.rope_theta)
        if scaling is None:
            raise ConfigError(
                "rope_freqs: config.json has no place for the rotary frequency factors of this GGUF file, which "
                "neither linear nor llama3 scaling gives; keep an adapter over that file instead of a merged or "
                "wholly trained model."
            )
        return {"rope_scaling": scaling if scaling else None}

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], *, tie_word_embeddings: bool) -> LLaMAConfig:
        """From GGUF metadata; raises as `config_values`, which reads them."""
        values, _ = config_values(metadata)
        return from_table(cls, values | {"tie_word_embeddings": tie_word_embeddings}, "model")

    # ------------------------------------------------------------------ what follows from the shape
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every weight by Hugging Face name; `lm_head.weight` is absent where it is the embedding."""
        return weight_shapes(self)

    @property
    def head_size(self) -> int:
        """`head_dim`, which __post_init__ has filled in."""
        assert self.head_dim is not None
        return self.head_dim

    def rotates(self, layer: int) -> bool:
        """Whether q and k of the layer are rotated."""
        return self.no_rope_layers is None or self.no_rope_layers[layer] != 0

    def is_sliding(self, layer: int) -> bool:
        """Whether the layer is one of those with a window, and with a rotation of their own where there is one."""
        types = self.layer_types
        return self.sliding_window is not None and (types is None or types[layer] == SLIDING)

    def window(self, layer: int) -> int | None:
        """The keys that a token sees in this layer, its own the last; None is all, as under a window of the context."""
        size = self.sliding_window
        return size if size is not None and size < self.context and self.is_sliding(layer) else None

    @property
    def attention_scale(self) -> float | None:
        """What attention scores are multiplied with; None is 1 / sqrt(head_dim)."""
        if self.attention_multiplier is not None:
            return self.attention_multiplier
        scalar = self.query_pre_attn_scalar
        return None if scalar is None or scalar == self.head_size else scalar**-0.5

    def query_scale(self, positions: int) -> np.ndarray | None:
        """What the query at each of so many positions is multiplied with (positions,), float64; None is 1."""
        if not self.llama_4_scaling_beta or self.rope_scaling is None:
            return None
        passed = np.arange(positions) // self.rope_scaling[ORIGINAL]
        beta = float(np.float32(self.llama_4_scaling_beta))  # as GGUF files hold it
        return np.asarray(1 + beta * np.log1p(passed))

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """`eos_token_id` as a tuple, empty where it is unset."""
        ids = self.eos_token_id
        return () if ids is None else tuple(ids) if isinstance(ids, list) else (ids,)

    @property
    def padding(self) -> int | None:
        """The row of the embedding that takes no gradient, as in transformers; None where every row takes one."""
        pad = self.pad_token_id
        return pad if pad is None or pad >= 0 else pad + self.vocab_size

    @property
    def kv_heads(self) -> int:
        """`num_key_value_heads`, which __post_init__ has filled in."""
        assert self.num_key_value_heads is not None
        return self.num_key_value_heads

    def num_parameters(self) -> int:
        """The exact number of weights; a tied head counts once."""
        return sum(math.prod(shape) for shape in self.parameter_shapes().values())

    def num_decoder_linear_parameters(self) -> int:
        """The weights of the decoder linears: those that QLoRA stores in 4 bits."""
        return sum(math.prod(shape) for shape in linear_shapes(self).values())

    @property
    def context(self) -> int:
        """The longest sequence that the model takes: max_position_embeddings, or what rope_scaling stretches it to."""
        return context_of(self.rope_scaling, self.max_position_embeddings)

    @property
    def rotated(self) -> int:
        """The dimensions of a head that are rotated: the first ones, the others pass."""
        return int(self.head_size * (self.partial_rotary_factor or 1))

    def rotation(self, length: int = 0) -> RotaryAngles:
        """The rotation of a sequence of `length` positions; most types of scaling rotate every length alike."""
        factors, context = self.rope_frequency_factors, self.max_position_embeddings
        return rotation(self.rotated, self.rope_theta, self.rope_scaling, factors, context=context, length=length)

    def rotary_span(self, length: int) -> int:
        """Sequences of two lengths are rotated alike where this is the same."""
        return span(self.rope_scaling, self.max_position_embeddings, length)

    def inverse_frequencies(self) -> np.ndarray:
        """Rotary frequencies (rotated / 2,), float64, of a sequence within the original context."""
        return self.rotation().frequencies

    def local_rotation(self, length: int = 0) -> RotaryAngles:
        """That of layers with a window."""
        if self.rope_local_base_freq is None:
            return self.rotation(length)
        return rotation(self.rotated, self.rope_local_base_freq, None)
