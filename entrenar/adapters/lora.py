"""LoRA: a trained low-rank update on a frozen linear.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv 2106.09685).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from entrenar.adapters.base import Adapter
from entrenar.adapters.dora_linear import DoRALinear
from entrenar.adapters.linears import LinearAdapterConfig
from entrenar.adapters.lora_linear import LoRALinear
from entrenar.adapters.peft_table import NEUTRAL, UNSUPPORTED, PeftTable
from entrenar.adapters.targets import END, Shaped, check_pattern, decoder_layer, first_matches
from entrenar.config import option, shown
from entrenar.errors import ConfigError

PEFT = PeftTable(
    peft_type="LORA",
    prefix="lora_",
    settings={
        "r": "rank",
        "lora_alpha": "alpha",
        "lora_dropout": "dropout",
        "target_modules": "target_modules",
        "use_rslora": "use_rslora",
        "use_dora": "use_dora",
        "exclude_modules": "exclude_modules",
        "layers_to_transform": "layers_to_transform",
        "rank_pattern": "rank_pattern",
        "alpha_pattern": "alpha_pattern",
    },
    required={"r": "the rank of the adapter", "target_modules": "the names of its layers"},
    optional=("use_rslora", "use_dora", "exclude_modules", "layers_to_transform"),
    defaults={"alpha": 8},
    unsupported={
        **UNSUPPORTED,
        "layer_replication": (None, []),
        "trainable_token_indices": (None,),
        "target_parameters": (None, []),
        "lora_bias": (False, None),
        "use_qalora": (False, None),
        "alora_invocation_tokens": (None,),
        "use_bdlora": (None,),
        "arrow_config": (None,),
        "kasa_config": (None,),
        "monteclora_config": (None,),
        "velora_config": (None,),
        "megatron_config": (None, {}),
        # the other initialisations (PiSSA, OLoRA, CorDA, LoftQ, ...) change the base when PEFT loads the adapter
        "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
        # biases that were trained are tensors of the file, which are refused there
        "bias": ("none", "all", "lora_only"),
        "layers_pattern": (None, [], "", "layers", ["layers"]),
    },
    without_effect=NEUTRAL
    | {
        "loftq_config": "is read only with init_lora_weights 'loftq'",
        "eva_config": "only chose the first weights",
        "corda_config": "is read only with init_lora_weights 'corda'",
        "lora_ga_config": "is read only with init_lora_weights 'lora_ga'",
        "megatron_core": "names a library that megatron_config needs",
        "qalora_group_size": "is read only with use_qalora",
        "runtime_config": "is not read by PEFT either",
        "ensure_weight_tying": "is about embedding and head, which get no adapters here",
    },
    objects=("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
)


@dataclass
class LoRAConfig(LinearAdapterConfig):
    """LoRA (Hu et al., 2021): y = W x + scaling B A dropout(x). Raises ConfigError for a value out of range.

    Names in lists mean every layer whose name ends in them ("q_proj", "layers.0.self_attn.q_proj"); a text with other
    characters than names have is a regular expression for whole names. Patterns mean the ends of names, the first that
    matches decides (as in PEFT).
    """

    section: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    peft: ClassVar[PeftTable] = PEFT
    layer: ClassVar[type[Adapter]] = LoRALinear

    rank: int = option(16, help="rank of the update", minimum=1)
    alpha: float = option(32.0, help="strength: the update is scaled by alpha / rank", above=0)
    dropout: float = option(0.0, help="probability that an input of the adapter is dropped", minimum=0, below=1)
    target_modules: list[str] | str = option(
        factory=lambda: ["q_proj", "v_proj"],
        help='linears that get adapters: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj or "all-linear"',
    )
    use_rslora: bool = option(False, help="scale by alpha / sqrt(rank) instead (Kalajdzievski, 2023)")
    use_dora: bool = option(False, help="train the norm of every row of W + scaling B A too (DoRA, Liu et al., 2024)")
    exclude_modules: list[str] | str = option(factory=list, help="linears that get none, though they are targets")
    layers_to_transform: list[int] = option(factory=list, help="layers that get adapters; empty is all of them")
    rank_pattern: dict[str, int] = option(
        factory=dict, help="other ranks by layer name or pattern (flag: q_proj=8,up_proj=4)"
    )
    alpha_pattern: dict[str, float] = option(factory=dict, help="other values of alpha by layer name or pattern")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_layers()
        self.rank_pattern = self._checked_patterns("rank_pattern", self.rank_pattern, int)
        self.alpha_pattern = self._checked_patterns("alpha_pattern", self.alpha_pattern, float)

    def _check_layers(self) -> None:
        for index in self.layers_to_transform:
            if index < 0:
                raise ConfigError(f"{self.section}.layers_to_transform has {index}, expected numbers of layers.")
        if self.layers_to_transform and isinstance(self.target_modules, str):
            raise ConfigError(f"{self.section}.layers_to_transform needs target_modules as a list, not as a pattern.")
        self.layers_to_transform = sorted(set(self.layers_to_transform))

    def _checked_patterns(self, key: str, table: Mapping[Any, Any], kind: type) -> dict[str, Any]:
        where, limit = f"{self.section}.{key}", 2**63
        for pattern, value in table.items():
            if not isinstance(pattern, str):
                raise ConfigError(f"{where}: {pattern!r} is no text, expected the name of a layer.")
            check_pattern(pattern, where, END)
            number = isinstance(value, int | kind) and not isinstance(value, bool)
            if not number or not 0 < value < limit:
                expected = "an integer of at least 1" if kind is int else "a number above 0"
                raise ConfigError(f"{where}: {pattern!r} is {shown(value)}, expected {expected}.")
        return {pattern: kind(value) for pattern, value in table.items()}

    @property
    def scaling(self) -> float:
        """The factor of the update where no pattern says otherwise."""
        return self.scaling_of(self.rank, self.alpha)

    def scaling_of(self, rank: int, alpha: float) -> float:
        """The factor of an update of this rank and strength."""
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def layers(self, model: Shaped) -> dict[str, tuple[int, float]]:
        """(rank, alpha) of every linear that gets an adapter; see `LinearAdapterConfig.layers`."""
        if self.layers_to_transform:
            numbers = [decoder_layer(name) for name in model.parameter_shapes()]
            self._check_layer_numbers(max((n + 1 for n in numbers if n is not None), default=0))
        return self._with_ranks(self.targets(model, self.layers_to_transform))

    def _check_layer_numbers(self, count: int) -> None:
        if self.layers_to_transform[-1] >= count:
            raise ConfigError(
                f"{self.section}.layers_to_transform has {self.layers_to_transform[-1]}, expected less than the "
                f"model's {count} layers."
            )

    def _with_ranks(self, names: list[str]) -> dict[str, tuple[int, float]]:
        ranks = first_matches(self.rank_pattern, names, f"{self.section}.rank_pattern")
        alphas = first_matches(self.alpha_pattern, names, f"{self.section}.alpha_pattern")
        return {
            name: (
                self.rank_pattern[ranks[name]] if name in ranks else self.rank,
                self.alpha_pattern[alphas[name]] if name in alphas else self.alpha,
            )
            for name in names
        }

    def weight_shapes(
        self, settings: tuple[int, float], out_features: int, in_features: int
    ) -> dict[str, tuple[int, ...]]:
        rank = settings[0]
        shapes: dict[str, tuple[int, ...]] = {
            "lora_A.weight": (rank, in_features),
            "lora_B.weight": (out_features, rank),
        }
        return shapes | ({"lora_magnitude_vector": (out_features,)} if self.use_dora else {})

    def saved_floats(self, settings: tuple[int, float], out_features: int, in_features: int) -> int:
        """The rank: x A^T; with DoRA also what is scaled and, with dropout, the input without what was dropped."""
        dora = out_features + (2 * in_features if self.dropout else 0)
        return settings[0] + (dora if self.use_dora else 0)

    @property
    def layer_type(self) -> type[Adapter]:
        return DoRALinear if self.use_dora else LoRALinear

    def named_in_budget(self) -> tuple[str, str]:
        return f"The adapters of rank {self.rank}", "use a lower rank"

    def to_peft(self, base_model: str | None = None) -> dict[str, Any]:
        """The content of an adapter_config.json."""
        return super().to_peft(base_model) | {
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "layers_to_transform": list(self.layers_to_transform) or None,
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "bias": "none",
            "init_lora_weights": True,
        }
