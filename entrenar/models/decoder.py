"""The decoder's module tree: embedding, decoder layers (grouped-query attention, SwiGLU or GeGLU), RMSNorm, head.

Touvron et al., "Llama 2: Open Foundation and Fine-Tuned Chat Models", 2023 (arXiv 2307.09288); parameter names and
the half-split rotary embedding are those of Hugging Face transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from entrenar.autograd import (
    Tensor,
    attention,
    checkpoint,
    geglu,
    linear,
    linear_cross_entropy,
    rope,
    rope_table,
    softcap,
    swiglu,
)
from entrenar.errors import ConfigError, ShapeError
from entrenar.models.families import FAMILIES
from entrenar.nn.layers import Embedding, Linear, RMSNorm, grouped
from entrenar.nn.meta import MetaWeights
from entrenar.nn.module import Module, Weight
from entrenar.nn.prefix import PrefixedAttention

if TYPE_CHECKING:
    from entrenar.models.caches import KeyValueCache
    from entrenar.models.config import LLaMAConfig
    from entrenar.models.rotary import RotaryAngles

WeightProvider = Callable[[str, tuple[int, ...]], Weight]


def recomputed_layers(config: LLaMAConfig, checkpointing: bool | int) -> int:
    """The number of layers, from the input on, that backward computes again: a number, or True for all."""
    if not isinstance(checkpointing, int) or checkpointing < 0:
        raise ConfigError(f"gradient_checkpointing is {checkpointing!r}, expected True, False or a number of layers.")
    return config.num_hidden_layers if checkpointing is True else min(checkpointing, config.num_hidden_layers)


ACTIVATIONS = {"silu": swiglu, "gelu_pytorch_tanh": geglu}  # of the gated MLP, by Family.activation


class RotaryTables:
    """cos and sin of the angles of a rotation, for as many positions as were asked for."""

    def __init__(self, rotation: Callable[[int], RotaryAngles], config: LLaMAConfig) -> None:
        self._rotation, self._config = rotation, config
        self._span, self._tables = -1, rope_table(0, [])  # of the last sequence
        self.of_queries = self._tables  # where those are scaled by their position

    def __call__(self, length: int) -> tuple[Tensor, Tensor]:
        """Tables for a sequence of `length` positions: of at least as many, (positions, rotated / 2)."""
        span = self._config.rotary_span(length)
        if span != self._span or length > self._tables[0].shape[0]:
            size, rotation = min(self._config.context, max(512, 1 << (length - 1).bit_length())), self._rotation(length)
            self._span, self._tables = span, rope_table(size, rotation.frequencies, rotation.scale)
            self.of_queries = _scaled_rows(self._tables, self._config.query_scale(size))
        return self._tables


def _scaled_rows(tables: tuple[Tensor, Tensor], scale: np.ndarray | None) -> tuple[Tensor, Tensor]:
    if scale is None:
        return tables
    cos, sin = (Tensor(table.numpy() * scale[:, None].astype(np.float32)) for table in tables)
    return cos, sin


class RotaryEmbedding:
    """The rotary angles of a batch: cos/sin tables (positions, rotated / 2) and the position of every token."""

    def __init__(self, tables: RotaryTables, length: int, positions: np.ndarray | None) -> None:
        (self.cos, self.sin), self.positions = tables(length), positions
        self.query_tables = tables.of_queries

    def __call__(self, x: Tensor) -> Tensor:
        return rope(x, self.cos, self.sin, self.positions, partial=True)

    def queries(self, x: Tensor) -> Tensor:
        """The same of queries, which a family may scale by their position."""
        return rope(x, *self.query_tables, self.positions, partial=True)


def _linear(config: LLaMAConfig, name: str, shape: tuple[int, int], weights: WeightProvider) -> Linear:
    """The linear of this name with the bias that its family gives it; a bias is never quantized."""
    weight, (*_, module, part) = weights(f"{name}.weight", shape), name.split(".")
    biased = part in FAMILIES[config.family].biased
    biased = biased or bool(config.attention_bias if module == "self_attn" else config.mlp_bias)
    return Linear(weight, cast(Tensor, weights(f"{name}.bias", shape[:1])) if biased else None)


def _split(x: Tensor, *sizes: int) -> list[Tensor]:
    """The parts of the last axis, of these sizes."""
    ends = np.cumsum(sizes).tolist()
    return [x[..., end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _norm(config: LLaMAConfig, name: str, size: int, weights: WeightProvider) -> RMSNorm:
    """The norm of this name over `size` values; norms are never quantized."""
    weight = cast(Tensor, weights(f"{name}.weight", (size,)))
    return RMSNorm(weight, config.rms_norm_eps, FAMILIES[config.family].norm_offset)


class Attention(PrefixedAttention):
    """Causal grouped-query self-attention with rotary positions; it sees what the layer's window leaves."""

    def __init__(self, config: LLaMAConfig, prefix: str, weights: WeightProvider, layer: int) -> None:
        self.heads, self.kv_heads, self.head_dim = config.num_attention_heads, config.kv_heads, config.head_size
        hidden, q_size, kv_size = config.hidden_size, self.heads * self.head_dim, self.kv_heads * self.head_dim
        self.rotates, self.q_size, self.kv_size = config.rotates(layer), q_size, kv_size
        self.qkv_proj: Linear | None = None
        if FAMILIES[config.family].fused:
            self.qkv_proj = _linear(config, f"{prefix}.qkv_proj", (q_size + 2 * kv_size, hidden), weights)
        else:
            self.q_proj = _linear(config, f"{prefix}.q_proj", (q_size, hidden), weights)
            self.k_proj = _linear(config, f"{prefix}.k_proj", (kv_size, hidden), weights)
            self.v_proj = _linear(config, f"{prefix}.v_proj", (kv_size, hidden), weights)
        self.o_proj = _linear(config, f"{prefix}.o_proj", (hidden, q_size), weights)
        self.q_norm = self.k_norm = None
        self.normed_heads = FAMILIES[config.family].normed_heads
        if self.normed_heads:
            q_size = kv_size = self.head_dim
        if self.normed_heads or FAMILIES[config.family].normed_projections:
            self.q_norm = _norm(config, f"{prefix}.q_norm", q_size, weights)
            self.k_norm = _norm(config, f"{prefix}.k_norm", kv_size, weights)
        self.options: dict[str, Any] = {
            "scale": config.attention_scale,
            "window": config.window(layer),
            "softcap": config.attn_logit_softcapping,
        }

    def __call__(
        self,
        x: Tensor,
        rotary: RotaryEmbedding,
        cu_seqlens: np.ndarray | None,
        cache: KeyValueCache | None,
        last_only: bool = False,
    ) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self._projections(x)
        if not self.normed_heads:
            q, k = self._normed(q, k)
        q = q.reshape(batch, length, self.heads, self.head_dim)
        k = k.reshape(batch, length, self.kv_heads, self.head_dim)
        if self.normed_heads:
            q, k = self._normed(q, k)
        if self.rotates:
            q, k = rotary.queries(q), rotary(k)
        v = v.reshape(batch, length, self.kv_heads, self.head_dim)
        if cache is None and self.prefix is not None:
            k, v, ends = self.prefix.prepend(k, v, cu_seqlens)
            q = q if cu_seqlens is None else q.reshape(1, batch * length, self.heads, self.head_dim)
            out = attention(q, k, v, cu_seqlens, cu_seqlens_k=ends, **self.options)
        elif cache is None:
            out = attention(q, k, v, cu_seqlens, **self.options)
        else:
            q = q[:, length - 1 :] if last_only and length > 1 else q
            cache.append(k, v)
            out = cache.attend(q, self.options)
        return self.o_proj(out.reshape(batch, 1 if last_only else length, self.heads * self.head_dim))

    def _projections(self, x: Tensor) -> list[Tensor]:
        if self.qkv_proj is None:
            return grouped(x, self.q_proj, self.k_proj, self.v_proj)
        return _split(self.qkv_proj(x), self.q_size, self.kv_size, self.kv_size)

    def _normed(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (q, k) if self.q_norm is None or self.k_norm is None else (self.q_norm(q), self.k_norm(k))

    def saved_floats(self) -> int:
        """Floats a token that forward saves for backward: q, k, v, the output and its log-sum-exp.

        Where q and k are normalised: both before that too, with a scale for each norm.
        """
        heads = self.heads + self.kv_heads
        scales = heads if self.normed_heads else 2
        normed = 0 if self.q_norm is None else heads * self.head_dim + scales
        return 2 * (self.heads + self.kv_heads) * self.head_dim + self.heads + normed


class MLP(Module):
    """down(f(gate(x)) * up(x)), f the family's activation."""

    def __init__(self, config: LLaMAConfig, prefix: str, weights: WeightProvider) -> None:
        hidden, inner = config.hidden_size, config.intermediate_size
        self.inner, self.gate_up_proj = inner, cast("Linear | None", None)
        if FAMILIES[config.family].fused:
            self.gate_up_proj = _linear(config, f"{prefix}.gate_up_proj", (2 * inner, hidden), weights)
        else:
            self.gate_proj = _linear(config, f"{prefix}.gate_proj", (inner, hidden), weights)
            self.up_proj = _linear(config, f"{prefix}.up_proj", (inner, hidden), weights)
        self.down_proj = _linear(config, f"{prefix}.down_proj", (hidden, inner), weights)
        self.activation = ACTIVATIONS[FAMILIES[config.family].activation]

    def __call__(self, x: Tensor) -> Tensor:
        if self.gate_up_proj is None:
            gate, up = grouped(x, self.gate_proj, self.up_proj)
        else:
            gate, up = _split(self.gate_up_proj(x), self.inner, self.inner)
        return self.down_proj(self.activation(gate, up))

    def saved_floats(self) -> int:
        """Floats a token that forward saves for backward: gate and up; their product is computed again."""
        return 2 * self.inner

    def backward_floats(self) -> int:
        """Floats a token at the widest moment of backward: the gradients of the product, of gate and of up.

        Where gate and up are one linear, its gradient gathers both.
        """
        return (3 if self.gate_up_proj is None else 5) * self.inner


class DecoderLayer(Module):
    """One transformer layer: x + attention(norm(x)), then + mlp(norm(.)); a family has its norms before or after."""

    def __init__(self, config: LLaMAConfig, prefix: str, weights: WeightProvider, layer: int) -> None:
        family = FAMILIES[config.family]
        self.attention_norms, self.mlp_norms = family.attention_norms, family.mlp_norms
        self.is_sliding, self.width = config.is_sliding(layer), config.hidden_size
        self.residual_multiplier = config.residual_multiplier

        def add_norm(name: str | None) -> None:
            if name is not None:
                setattr(self, name, _norm(config, f"{prefix}.{name}", config.hidden_size, weights))

        add_norm(self.attention_norms[0])
        self.self_attn = Attention(config, f"{prefix}.self_attn", weights, layer)
        add_norm(self.attention_norms[1])
        add_norm(self.mlp_norms[0])
        self.mlp = MLP(config, f"{prefix}.mlp", weights)
        add_norm(self.mlp_norms[1])

    def __call__(
        self,
        x: Tensor,
        rotary: RotaryEmbedding,
        cu_seqlens: np.ndarray | None = None,
        cache: KeyValueCache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        before, after = self.attention_norms
        attended = self.self_attn(self._normed(before, x), rotary, cu_seqlens, cache, last_only)
        x = (x[:, x.shape[1] - 1 :] if last_only and x.shape[1] > 1 else x) + self._scaled(
            self._normed(after, attended)
        )
        before, after = self.mlp_norms
        return x + self._scaled(self._normed(after, self.mlp(self._normed(before, x))))

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.residual_multiplier is None else x * self.residual_multiplier

    def _normed(self, name: str | None, x: Tensor) -> Tensor:
        return x if name is None else getattr(self, name)(x)

    def saved_floats(self) -> int:
        """Floats a token that forward saves for backward: what the parts save; what a norm gives is computed again.

        A part without a norm before it saves its input.
        """
        names = (*self.attention_norms, *self.mlp_norms)
        norms = [getattr(self, name).saved_floats() for name in names if name is not None]
        inputs = self.width * [self.attention_norms[0], self.mlp_norms[0]].count(None)
        return sum(norms) + inputs + self.self_attn.saved_floats() + self.mlp.saved_floats()


class Backbone(Module):
    """Everything below the head; the part that Hugging Face calls `model`."""

    def __init__(self, config: LLaMAConfig, weights: WeightProvider) -> None:
        table = weights("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
        scale = config.hidden_size**0.5 if FAMILIES[config.family].scaled_embedding else config.embedding_multiplier
        self.embed_tokens = Embedding(table, config.padding, scale)
        layers = range(config.num_hidden_layers)
        self.layers = [DecoderLayer(config, f"model.layers.{i}", weights, i) for i in layers]
        self.norm = _norm(config, "model.norm", config.hidden_size, weights)


class CausalLM(Module):
    """The module tree: backbone and head; `weights` makes a weight of a name and shape, nothing else is allocated."""

    def __init__(self, config: LLaMAConfig, weights: WeightProvider) -> None:
        self.model = Backbone(config, weights)
        self.lm_head: Linear | None = None
        if not config.tie_word_embeddings:
            self.lm_head = Linear(weights("lm_head.weight", (config.vocab_size, config.hidden_size)))

    @property
    def head_weight(self) -> Weight:
        """The matrix (vocabulary, hidden) that turns hidden states into logits."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @property
    def prefix_length(self) -> int:
        """Tokens whose keys and values stand before every sequence (prefix tuning)."""
        prefix = self.model.layers[0].self_attn.prefix
        return 0 if prefix is None else prefix.length


class Decoder(CausalLM):
    """A module tree that runs: tokens to hidden states, logits or loss."""

    def __init__(self, config: LLaMAConfig, weights: WeightProvider) -> None:
        super().__init__(config, weights)
        self.config = config
        self.gradient_checkpointing: bool | int = False  # True, or how many layers, nearest the input first
        self.in_place: Callable[[int, DecoderLayer], Callable[..., Tensor]] | None = None  # what runs for a layer
        self._rotary = RotaryTables(config.rotation, config)
        self._local_rotary = self._rotary  # of layers with a window
        if config.rope_local_base_freq is not None:
            self._local_rotary = RotaryTables(config.local_rotation, config)

    def __call__(
        self,
        tokens: np.ndarray,
        positions: np.ndarray | None = None,
        cu_seqlens: np.ndarray | None = None,
    ) -> Tensor:
        """Logits (batch, seq, vocab) of integer tokens (batch, seq).

        `positions` (batch, seq) defaults to 0, 1, ...; `cu_seqlens` bounds packed samples in the flattened tokens, none
        of which sees another. Raises ShapeError for a token id outside the vocabulary or a sequence beyond the context.
        """
        return self.logits(self.hidden_states(tokens, positions, cu_seqlens))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocab) of final hidden states (..., hidden)."""
        logits, cap = linear(self.divided(hidden), self.head_weight), self.config.final_logit_softcapping
        return logits if cap is None else softcap(logits, cap)

    def loss(
        self,
        tokens: np.ndarray,
        targets: np.ndarray,
        positions: np.ndarray | None = None,
        cu_seqlens: np.ndarray | None = None,
        *,
        reduction: str = "mean",
        divisor: float | None = None,
        weights: np.ndarray | None = None,
    ) -> Tensor:
        """Cross-entropy of `targets` (batch, seq), already shifted, -100 ignored; logits exist a chunk at a time.

        `divisor` replaces the number of targets under reduction "mean" (gradient accumulation divides each part by the
        tokens of the whole step). `weights` (batch, seq) multiply the targets' losses; the mean is by their sum then.
        """
        hidden = self.hidden_states(tokens, positions, cu_seqlens)
        targets = np.asarray(targets)
        if targets.shape != hidden.shape[:2]:
            raise ShapeError(f"loss: targets have shape {targets.shape}, expected {hidden.shape[:2]} as the tokens.")
        return linear_cross_entropy(
            self.divided(hidden),
            self.head_weight,
            targets,
            reduction=reduction,
            divisor=divisor,
            weights=weights,
            softcap=self.config.final_logit_softcapping,
        )

    def divided(self, hidden: Tensor) -> Tensor:
        """What the head multiplies: logits_scaling divides the hidden states, and with them the logits."""
        return hidden if self.config.logits_scaling is None else hidden * (1 / self.config.logits_scaling)

    def untie_head(self) -> None:
        """Give the head a weight of its own: it is the embedding's until one of both is replaced."""
        if self.lm_head is None:
            self.lm_head = Linear(self.model.embed_tokens.weight)
            self.config = replace(self.config, tie_word_embeddings=False)

    def hidden_states(
        self,
        tokens: np.ndarray,
        positions: np.ndarray | None = None,
        cu_seqlens: np.ndarray | None = None,
        caches: Sequence[KeyValueCache] | None = None,
        length: int | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Final normalised hidden states (batch, seq, hidden) of integer tokens (batch, seq).

        `length` is that of the sequence which they are a part of, by default their last position's; types of scaling
        that depend on it take that of the longest sequence of a batch. `last_only`, with caches: those of the last
        position, (batch, 1, hidden); what the last layer would compute of the others alone is left out.
        """
        try:
            tokens = np.asarray(tokens)
        except ValueError as error:
            raise ShapeError("tokens must be integers of shape (batch, seq): the rows differ in length.") from error
        if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
            raise ShapeError(
                f"tokens must be integers of shape (batch, seq), not {tokens.dtype} of shape {tokens.shape}."
            )
        if not tokens.size:
            raise ShapeError(f"tokens have shape {tokens.shape}, expected at least one token.")
        if caches is None and self.prefix_length:  # a cache holds the prefix, and positions count it
            first = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
            positions = np.asarray(first) + self.prefix_length
        everywhere, local = self._rotary_embeddings(tokens, positions, length)
        x = self.model.embed_tokens(tokens)
        recomputed = recomputed_layers(self.config, self.gradient_checkpointing)
        for index, layer in enumerate(self.model.layers):
            rotary = local if layer.is_sliding else everywhere
            run = layer if self.in_place is None else self.in_place(index, layer)
            if caches is not None:
                x = run(x, rotary, None, caches[index], last_only and index == len(caches) - 1)
            elif index < recomputed:  # the first: by the time backward comes to them the others' activations are free
                x = checkpoint(run, x, rotary, cu_seqlens)
            else:
                x = run(x, rotary, cu_seqlens)
        return self.model.norm(x)

    def _rotary_embeddings(
        self, tokens: np.ndarray, positions: np.ndarray | None, length: int | None
    ) -> tuple[RotaryEmbedding, RotaryEmbedding]:
        """That of layers that see everything, and that of layers with a window."""
        if positions is not None:
            positions = np.asarray(positions)
            if positions.shape != tokens.shape:
                raise ShapeError(f"positions have shape {positions.shape}, expected {tokens.shape} as the tokens.")
        if length is None:
            length = tokens.shape[1] if positions is None else int(positions.max(initial=-1)) + 1
        if length > self.config.context:
            raise ShapeError(
                f"A sequence of {length} positions is longer than the model's context of {self.config.context}; use a "
                "shorter sequence."
            )
        everywhere = RotaryEmbedding(self._rotary, length, positions)
        if self._local_rotary is self._rotary:
            return everywhere, everywhere
        return everywhere, RotaryEmbedding(self._local_rotary, length, positions)


def weight_shapes(config: LLaMAConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every weight by Hugging Face name, in the tree's order; a tied head is absent. Allocates nothing."""
    weights = MetaWeights()
    CausalLM(config, weights)
    return weights.shapes


def linear_shapes(config: LLaMAConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear of the decoder layers by module name, in the tree's order. Allocates nothing."""
    modules = CausalLM(config, MetaWeights()).named_modules()
    linears = {name: module for name, module in modules if isinstance(module, Linear) and ".layers." in name}
    return {name: (linear.out_features, linear.in_features) for name, linear in linears.items()}


@dataclass(frozen=True)
class Activations:
    """What a training step holds beside weights and gradients, in floats a token, adapters apart."""

    hidden: int  # the residual stream
    layer: int  # what a decoder layer saves for its backward pass
    backward: int  # at the widest moment of a layer's backward pass
    widest: int  # the input of a layer's widest linear
    logits: int


def activations(config: LLaMAConfig) -> Activations:
    """The table of activations, as the modules say it. Allocates nothing."""
    tree = CausalLM(config, MetaWeights())
    logits, hidden = tree.head_weight.shape
    layers = tree.model.layers
    linears = [part for layer in layers for _, part in layer.named_modules() if isinstance(part, Linear)]
    return Activations(
        hidden=hidden,
        layer=max(layer.saved_floats() for layer in layers),
        backward=max(layer.mlp.backward_floats() for layer in layers),
        widest=max(linear.in_features for linear in linears),
        logits=logits,
    )
