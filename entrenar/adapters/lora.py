"""LoRA: a trained low-rank update on a frozen linear.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv 2106.09685).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np

from entrenar.adapters.base import Adapter, adapter_layers, base_shapes, copied
from entrenar.adapters.dora_linear import DoRALinear
from entrenar.adapters.linears import LinearAdapterConfig
from entrenar.adapters.lora_embedding import PARTS, LoRAEmbedding
from entrenar.adapters.lora_init import check_init, takes_from_base
from entrenar.adapters.lora_linear import LoRALinear
from entrenar.adapters.options import LoRAOptions
from entrenar.adapters.peft_table import NEUTRAL, UNSUPPORTED, PeftTable, takes_peft_names
from entrenar.adapters.peft_weights import PREFIX
from entrenar.adapters.targets import (
    END,
    Shaped,
    check_pattern,
    decoder_layer,
    first_matches,
    full_matches,
    is_linear,
    is_quick,
    listed,
)
from entrenar.adapters.trained_weights import EMBEDDING, HEAD, biases, is_tied, saved_modules, train, untie, within
from entrenar.autograd.quantized import QuantizedTensor
from entrenar.config import shown
from entrenar.errors import ConfigError
from entrenar.nn.layers import Embedding
from entrenar.nn.module import Module

Config = TypeVar("Config", bound="LoRAConfig")
LAYERS = r"(?:.*\.)?{}\.{}\..*"  # what PEFT makes of layers_pattern, and the number of a layer: "a|b" is not grouped

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
        "layers_pattern": "layers_pattern",
        "bias": "bias",
        "modules_to_save": "modules_to_save",
        "ensure_weight_tying": "ensure_weight_tying",
    },
    required={"r": "the rank of the adapter", "target_modules": "the names of its layers"},
    optional=(
        *("use_rslora", "use_dora", "exclude_modules", "layers_to_transform", "layers_pattern"),
        *("modules_to_save", "ensure_weight_tying"),
    ),
    defaults={"alpha": 8},
    unsupported={
        **{key: off for key, off in UNSUPPORTED.items() if key != "modules_to_save"},
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
        # the others (PiSSA by random numbers, OLoRA, CorDA, LoftQ, ...) change the base when PEFT loads the adapter
        "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva", "pissa"),
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
    },
    objects=("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
)


@takes_peft_names
@dataclass
class LoRAConfig(LoRAOptions, LinearAdapterConfig):
    """LoRA (Hu et al., 2021): y = W x + scaling B A dropout(x). Raises ConfigError for a value out of range.

    Names in lists mean every layer whose name ends in them ("q_proj", "layers.0.self_attn.q_proj"); a text with other
    characters than names have is a regular expression for whole names. Patterns mean the ends of names, the first that
    matches decides (as in PEFT).
    """

    title: ClassVar[str] = "LoRA"
    peft: ClassVar[PeftTable] = PEFT
    layer: ClassVar[type[Adapter]] = LoRALinear

    def __post_init__(self) -> None:
        self.layers_pattern = listed(self.layers_pattern)
        super().__post_init__()
        self._check_layers()
        check_init(self.init_lora_weights, f"{self.section}.init_lora_weights")
        if self.loftq_iter > 1 and self.init_lora_weights != "loftq":
            raise ConfigError(
                f"{self.section}.loftq_iter is {self.loftq_iter}, which has no effect without init_lora_weights = "
                '"loftq"; leave it out.'
            )
        if "" in self.modules_to_save:
            raise ConfigError(f"{self.section}.modules_to_save has an empty name; leave it out.")
        self.rank_pattern = self._checked_patterns("rank_pattern", self.rank_pattern, int)
        self.alpha_pattern = self._checked_patterns("alpha_pattern", self.alpha_pattern, float)

    def _check_layers(self) -> None:
        for index in self.layers_to_transform:
            if index < 0:
                raise ConfigError(f"{self.section}.layers_to_transform has {index}, expected numbers of layers.")
        if self.layers_to_transform and isinstance(self.target_modules, str):
            raise ConfigError(f"{self.section}.layers_to_transform needs target_modules as a list, not as a pattern.")
        if self.layers_pattern and not self.layers_to_transform:
            raise ConfigError(f"{self.section}.layers_pattern has no meaning without layers_to_transform.")
        for pattern in self._layer_patterns():
            check_pattern(pattern, f"{self.section}.layers_pattern", LAYERS.format("{}", 0))
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
        return {name: settings for name, settings in self._adapted(model).items() if is_linear(name)}

    def embeddings(self, model: Shaped) -> dict[str, tuple[int, float]]:
        """(rank, alpha) of the embedding where it gets an adapter; raises as `layers`."""
        return {name: settings for name, settings in self._adapted(model).items() if not is_linear(name)}

    def _adapted(self, model: Shaped) -> dict[str, tuple[int, float]]:
        if self.layers_to_transform:
            numbers = [decoder_layer(name) for name in model.parameter_shapes()]
            self._check_layer_numbers(max((n + 1 for n in numbers if n is not None), default=0))
        found = self._with_ranks(self.targets(model, self.layers_to_transform))
        embedded = next((name for name in found if not is_linear(name)), None)
        if embedded and (self.use_dora or self.ensure_weight_tying):
            key = "use_dora" if self.use_dora else "ensure_weight_tying"
            raise ConfigError(
                f"{self.section}.{key} is true, which is not supported beside an adapter on {embedded}; leave one out."
            )
        return found

    def adapts(self, name: str) -> bool:
        return is_linear(name) or name.rsplit(".", 1)[-1] == EMBEDDING.rsplit(".", 1)[-1]

    def _check_layer_numbers(self, count: int) -> None:
        if self.layers_to_transform[-1] >= count:
            raise ConfigError(
                f"{self.section}.layers_to_transform has {self.layers_to_transform[-1]}, expected less than the "
                f"model's {count} layers."
            )

    def _layer_patterns(self) -> list[str]:
        return [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern

    def in_layers(self, names: Sequence[str], layers: Sequence[int]) -> set[str]:
        patterns = self._layer_patterns()
        if not patterns:
            return super().in_layers(names, layers)
        wanted = [LAYERS.format(pattern, number) for pattern in patterns for number in layers]
        return set().union(*full_matches(wanted, names, f"{self.section}.layers_pattern", quick=is_quick(patterns)))

    def trained_whole(self, names: set[str]) -> set[str]:
        return {name for name in names if within(name, self.modules_to_save)}

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
        """The rank: x A^T; with DoRA also what is scaled and, with dropout, what was not dropped of the input."""
        dora = out_features + (in_features if self.dropout else 0)
        return settings[0] + (dora if self.use_dora else 0)

    @property
    def layer_type(self) -> type[Adapter]:
        return DoRALinear if self.use_dora else LoRALinear

    # ------------------------------------------------------------------ weights that are trained beside adapters
    def adapter_shapes(self, model: Shaped) -> dict[str, tuple[int, ...]]:
        shapes = base_shapes(model)
        of_embeddings: dict[str, tuple[int, ...]] = {}
        for name, (rank, _) in self.embeddings(model).items():
            vocabulary, hidden = shapes[f"{name}.weight"]
            of_embeddings |= {f"{name}.{PARTS[0]}": (rank, vocabulary), f"{name}.{PARTS[1]}": (hidden, rank)}
        return of_embeddings | super().adapter_shapes(model) | self._trained_beside(model)

    def _trained_beside(self, model: Shaped) -> dict[str, tuple[int, ...]]:
        """The weights of the base that are trained, by name: whole modules and biases."""
        shapes, where = base_shapes(model), f"{self.section}.modules_to_save"
        found = biases(shapes, self.bias, self.layers(model))
        return found | saved_modules(shapes, self.modules_to_save, self.ensure_weight_tying, where)

    def trains_logits(self, model: Shaped) -> bool:
        shapes = base_shapes(model)
        head = EMBEDDING if is_tied(shapes) and self.ensure_weight_tying else HEAD
        return within(head, self.modules_to_save) and bool(self._trained_beside(model))

    def install(self, model: Module, seed: int) -> None:
        beside, tied = self._trained_beside(model), is_tied(model.parameter_shapes())
        super().install(model, seed)
        rng = np.random.Generator(np.random.Philox([seed, 1]))
        for name, (rank, alpha) in self.embeddings(model).items():
            embedding = dict(model.named_modules())[name]
            assert isinstance(embedding, Embedding)
            model.replace(name, LoRAEmbedding(embedding, rank, self.scaling_of(rank, alpha), rng))
        ends = [f"{module}.weight" for module in (EMBEDDING, HEAD)]
        if tied and not self.ensure_weight_tying and (self.embeddings(model) or any(name in beside for name in ends)):
            untie(model)  # as in PEFT the head keeps the weight that the embedding had
        train(model, beside)

    def merge_into(self, model: Module) -> None:
        super().merge_into(model)
        for name, module in list(model.named_modules()):
            if isinstance(module, LoRAEmbedding):
                model.replace(name, module.merged())

    # ------------------------------------------------------------------ files
    def file_names(self, model: Shaped) -> dict[str, str]:
        """PEFT has the linear of an adapter as its base_layer."""
        return {f"{name}.bias": f"{name}.base_layer.bias" for name in self.layers(model)}

    def _both_ends(self, model: Shaped) -> bool:
        """Whether a file has the one weight of a tied embedding and head under the names of both."""
        return self.ensure_weight_tying and is_tied(base_shapes(model)) and within(EMBEDDING, self.modules_to_save)

    def file_shapes(self, model: Shaped) -> dict[str, tuple[int, ...]]:
        found = super().file_shapes(model)
        if self._both_ends(model):
            found[f"{PREFIX}{HEAD}.weight"] = found[f"{PREFIX}{EMBEDDING}.weight"]
        return found

    def file_arrays(self, model: Module) -> dict[str, np.ndarray]:
        """Where A and B took a part of the base (PiSSA), the update of the base as it was, of twice the rank."""
        found = super().file_arrays(model)
        if self._both_ends(model):
            found[f"{PREFIX}{HEAD}.weight"] = found[f"{PREFIX}{EMBEDDING}.weight"]
        for name, layer in adapter_layers(model):
            if isinstance(layer, LoRALinear):
                found |= {f"{PREFIX}{name}.{part}": values for part, values in layer.saved_weights()}
        return found

    def remarks(self, model: Module) -> list[str]:
        """What an adapter over a base in 4 bits that its first values changed is one of."""
        sizes = {layer.weight.dtype for _, layer in adapter_layers(model) if isinstance(layer.weight, QuantizedTensor)}
        if not sizes or not (self.loftq_iter > 1 or takes_from_base(self.init_lora_weights)):
            return []
        return [
            f"init_lora_weights = {self.init_lora_weights!r} gave the base in {', '.join(sorted(sizes))} other "
            "quantized values; the adapter that is saved is one for the weights in full precision, over which it was "
            "not trained."
        ]

    def named_in_budget(self) -> tuple[str, str]:
        return f"The adapters of rank {self.rank}", "use a lower rank"

    def to_peft(self, base_model: str | None = None) -> dict[str, Any]:
        """The content of an adapter_config.json."""
        ranks, alphas = 1, 1.0
        if takes_from_base(self.init_lora_weights):  # [A; A0] and [B, -B0], under the same scaling
            ranks, alphas = 2, math.sqrt(2) if self.use_rslora else 2.0
        return super().to_peft(base_model) | {
            "r": self.rank * ranks,
            "lora_alpha": self.alpha * alphas,
            "lora_dropout": self.dropout,
            "layers_to_transform": list(self.layers_to_transform) or None,
            "layers_pattern": copied(self.layers_pattern) or None,
            "rank_pattern": {pattern: rank * ranks for pattern, rank in self.rank_pattern.items()},
            "alpha_pattern": {pattern: alpha * alphas for pattern, alpha in self.alpha_pattern.items()},
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "bias": self.bias,
            "modules_to_save": list(self.modules_to_save) or None,
            "ensure_weight_tying": self.ensure_weight_tying,
            "init_lora_weights": True,
        }

    @classmethod
    def from_peft(cls: type[Config], table: Mapping[str, Any], where: str = "adapter_config.json") -> Config:
        """As of every kind; an adapter of PiSSA that PEFT saved as it is takes its part of the base here too."""
        config = super().from_peft(table, where)
        return replace(config, init_lora_weights="pissa") if table.get("init_lora_weights") == "pissa" else config
