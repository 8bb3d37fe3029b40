"""The options of each kind of adapter, without what acts on them: a command line is parsed by these alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from entrenar.config import option


class AdapterOptions:
    """The options of one kind, a dataclass; its configuration, which checks them and acts, is of the same section."""

    section: ClassVar[str]  # of a configuration file; what messages call the configuration


@dataclass
class LoRAOptions(AdapterOptions):
    """[lora]."""

    section: ClassVar[str] = "lora"

    rank: int = option(16, help="rank of the update", minimum=1)
    alpha: float = option(32.0, help="strength: the update is scaled by alpha / rank", above=0)
    dropout: float = option(0.0, help="probability that an input of the adapter is dropped", minimum=0, below=1)
    target_modules: list[str] | str = option(
        factory=lambda: ["q_proj", "v_proj"],
        help='what gets adapters: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj or "all-linear", and '
        "embed_tokens",
    )
    use_rslora: bool = option(False, help="scale by alpha / sqrt(rank) instead (Kalajdzievski, 2023)")
    use_dora: bool = option(False, help="train the norm of every row of W + scaling B A too (DoRA, Liu et al., 2024)")
    exclude_modules: list[str] | str = option(factory=list, help="linears that get none, though they are targets")
    layers_to_transform: list[int] = option(factory=list, help="layers that get adapters; empty is all of them")
    rank_pattern: dict[str, int] = option(
        factory=dict, help="other ranks by layer name or pattern (flag: q_proj=8,up_proj=4)"
    )
    alpha_pattern: dict[str, float] = option(factory=dict, help="other values of alpha by layer name or pattern")
    layers_pattern: list[str] | str = option(
        factory=list, help="what the model calls its list of layers, for layers_to_transform; empty is any name"
    )
    init_lora_weights: bool | str = option(
        True, help="first values of A and B: true, gaussian, orthogonal, pissa, pissa_niter_N, loftq (over 4 bits)"
    )
    loftq_iter: int = option(
        1, help="steps of loftq; from the second on the base's quantized values change too", minimum=1
    )
    bias: str = option("none", help="biases of the base that are trained as well", choices=("none", "all", "lora_only"))
    modules_to_save: list[str] = option(
        factory=list, help="modules that are trained whole and saved with the adapter, as embed_tokens,lm_head or norm"
    )
    ensure_weight_tying: bool = option(
        False, help="keep one weight for a tied embedding and head of modules_to_save; else each gets its own"
    )


@dataclass
class QLoRAOptions(LoRAOptions):
    """[qlora]."""

    section: ClassVar[str] = "qlora"

    quantize_4bit: bool = option(True, help="quantize the decoder linears that are not quantized yet")
    quantize: str = option(
        "auto",
        help="4-bit format: auto keeps the quantized values that a file has and makes NF4 of the other decoder linears",
        choices=("auto", "nf4", "int4"),
    )
    double_quantization: bool = option(True, help="keep the scales of NF4 in 8 bits")


@dataclass
class DoRAOptions(LoRAOptions):
    """[dora]."""

    section: ClassVar[str] = "dora"

    use_dora: bool = option(True, help="train the norm of every row of W + scaling B A too; true in this section")


@dataclass
class IA3Options(AdapterOptions):
    """[ia3]."""

    section: ClassVar[str] = "ia3"

    target_modules: list[str] | str = option(
        factory=lambda: ["k_proj", "v_proj", "down_proj"],
        help='linears that get adapters: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj or "all-linear"',
    )
    feedforward_modules: list[str] | str | None = option(
        None, help="targets whose input is scaled in the place of their output; unset is down_proj"
    )
    exclude_modules: list[str] | str = option(factory=list, help="linears that get none, though they are targets")
    init_ia3_weights: bool = option(True, help="start from ones, which change nothing; else from random numbers")


@dataclass
class PrefixOptions(AdapterOptions):
    """[prefix]."""

    section: ClassVar[str] = "prefix"

    num_virtual_tokens: int = option(20, help="keys and values before every sequence", unit="tokens", minimum=1)
    init_weights: str = option(
        "random", help="first values: of a normal distribution, or zero", choices=("random", "zero")
    )


OPTIONS: dict[str, type[AdapterOptions]] = {
    kind.section: kind for kind in (LoRAOptions, QLoRAOptions, DoRAOptions, IA3Options, PrefixOptions)
}
