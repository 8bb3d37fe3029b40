"""LoRA: a trained low-rank update on a frozen linear, and which linears get one, of which rank and strength.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021 (arXiv 2106.09685).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from entrenar.adapters.peft_table import in_terms_of_peft, settings_of
from entrenar.adapters.targets import END, check_pattern, first_matches, is_name, module_names, named
from entrenar.autograd import LowRankUpdate, Tensor
from entrenar.autograd.quantized import QuantizedTensor
from entrenar.config import check_dataclass, nearest, option, shown
from entrenar.errors import ConfigError
from entrenar.models.config import LINEAR_LAYERS, LLaMAConfig
from entrenar.nn.layers import Linear
from entrenar.nn.module import Weight

if TYPE_CHECKING:
    from entrenar.models.api import LLaMAModel


class LoRALinear(Linear):
    """y = x W^T + bias + scaling (dropout(x) A^T) B^T, A (rank, in_features), B (out_features, rank); W, bias frozen.

    A starts as kaiming-uniform noise and B as zeros (as PEFT does), so a new adapter changes nothing.
    """

    def __init__(self, base: Linear, rank: int, scaling: float, dropout: float, rng: np.random.Generator) -> None:
        super().__init__(base.weight, base.bias)
        for weight in (base.weight, base.bias):
            if isinstance(weight, Tensor):
                weight.requires_grad = False
        self.rank, self.scaling, self.dropout = rank, scaling, dropout
        self.training = True
        bound = 1.0 / math.sqrt(self.in_features)
        a = rng.uniform(-bound, bound, (rank, self.in_features)).astype(np.float32)
        self.lora_A = Tensor.from_numpy(a, requires_grad=True)
        self.lora_B = Tensor.from_numpy(np.zeros((self.out_features, rank), np.float32), requires_grad=True)

    def own_weights(self) -> Iterator[tuple[str, Weight]]:
        """The base weight under its own name, and the adapter's under PEFT's."""
        yield "weight", self.weight
        if self.bias is not None:
            yield "bias", self.bias
        yield "lora_A.weight", self.lora_A
        yield "lora_B.weight", self.lora_B

    def terms(self) -> tuple[Weight, Tensor | None, LowRankUpdate | None]:
        dropout = self.dropout if self.training else 0.0
        return self.weight, self.bias, LowRankUpdate(self.lora_A, self.lora_B, self.scaling, dropout)

    def merged(self) -> Linear:
        """A float32 linear with W + scaling B A; a W in codes or bfloat16 is dequantized for it."""
        base = self.weight.dequantize() if isinstance(self.weight, QuantizedTensor) else self.weight.numpy()
        weight = base.astype(np.float32)
        weight += np.float32(self.scaling) * (self.lora_B.numpy() @ self.lora_A.numpy())
        return Linear(Tensor.from_numpy(weight), self.bias)


@dataclass
class LoRAConfig:
    """LoRA (Hu et al., 2021): y = W x + scaling B A dropout(x). Raises ConfigError for a value out of range.

    Names in lists mean every layer whose name ends in them ("q_proj", "layers.0.self_attn.q_proj"); a text with other
    characters than names have is a regular expression for whole names. Patterns mean the ends of names, the first that
    matches decides (as in PEFT).
    """

    section: ClassVar[str] = "lora"  # what messages call the configuration

    rank: int = option(16, help="rank of the update", minimum=1)
    alpha: float = option(32.0, help="strength: the update is scaled by alpha / rank", above=0)
    dropout: float = option(0.0, help="probability that an input of the adapter is dropped", minimum=0, below=1)
    target_modules: list[str] | str = option(
        factory=lambda: ["q_proj", "v_proj"],
        help='linears that get adapters: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj or "all-linear"',
    )
    use_rslora: bool = option(False, help="scale by alpha / sqrt(rank) instead (Kalajdzievski, 2023)")
    exclude_modules: list[str] | str = option(factory=list, help="linears that get none, though they are targets")
    layers_to_transform: list[int] = option(factory=list, help="layers that get adapters; empty is all of them")
    rank_pattern: dict[str, int] = option(
        factory=dict, help="other ranks by layer name or pattern (flag: q_proj=8,up_proj=4)"
    )
    alpha_pattern: dict[str, float] = option(factory=dict, help="other values of alpha by layer name or pattern")

    def __post_init__(self) -> None:
        self.target_modules, self.exclude_modules = _listed(self.target_modules), _listed(self.exclude_modules)
        check_dataclass(self, self.section)
        self._check_targets()
        self._check_layers()
        self.rank_pattern = self._checked_patterns("rank_pattern", self.rank_pattern, int)
        self.alpha_pattern = self._checked_patterns("alpha_pattern", self.alpha_pattern, float)

    def _check_targets(self) -> None:
        for key, names in (("target_modules", self.target_modules), ("exclude_modules", self.exclude_modules)):
            if isinstance(names, str):
                check_pattern(names, f"{self.section}.{key}")
        targets = self.target_modules
        if isinstance(targets, str):
            return
        if "all-linear" in targets:
            targets = list(LINEAR_LAYERS)
        if not targets:
            raise ConfigError(f"{self.section}.target_modules is empty, expected at least one linear layer.")
        for name in targets:
            if name.rsplit(".", 1)[-1] not in LINEAR_LAYERS:
                raise ConfigError(
                    f"{self.section}.target_modules: {name!r} is no linear of a decoder layer; "
                    f"{nearest(name, (*LINEAR_LAYERS, 'all-linear'))}"
                )
        longer = sorted({name for name in targets if name not in LINEAR_LAYERS})
        self.target_modules = [name for name in LINEAR_LAYERS if name in targets] + longer

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

    def layers(self, model: LLaMAConfig) -> dict[str, tuple[int, float]]:
        """(rank, alpha) of every linear that gets an adapter, by its name, in the model's order.

        ConfigError where a setting names what the model does not have, or what is no linear of a decoder layer.
        """
        shapes = model.parameter_shapes()
        names = module_names(shapes)
        chosen = named(self.target_modules, names, f"{self.section}.target_modules")
        if self.layers_to_transform:
            self._check_layer_numbers(model.num_hidden_layers)
            wanted = {f"model.layers.{index}." for index in self.layers_to_transform}
            whole = set(self.target_modules)  # a whole name is meant wherever it is
            chosen = {name for name in chosen if name in whole or any(name.startswith(prefix) for prefix in wanted)}
        if self.exclude_modules:
            chosen -= named(self.exclude_modules, names, f"{self.section}.exclude_modules")
        for name in sorted(chosen):
            if name.rsplit(".", 1)[-1] not in LINEAR_LAYERS:
                raise ConfigError(
                    f"{self.section}.target_modules: {self.target_modules!r} matches {name}, which is no linear of "
                    "a decoder layer and gets no adapter here; name the layers."
                )
        if not chosen:
            raise ConfigError(f"No layer of the model matches target_modules {self.target_modules!r}.")
        return self._with_ranks([name for name in names if name in chosen])

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

    def num_parameters(self, model: LLaMAConfig) -> int:
        """The weights of the adapters on a model of this shape; nothing is allocated."""
        shapes = model.parameter_shapes()
        return sum(rank * sum(shapes[f"{name}.weight"]) for name, (rank, _) in self.layers(model).items())

    def largest_layer_rank(self, model: LLaMAConfig) -> int:
        """The sum of the ranks in the layer where it is largest: the floats a token that its x A^T take."""
        layers: Counter[str] = Counter()
        for name, (rank, _) in self.layers(model).items():
            layers[name.split(".")[2]] += rank
        return max(layers.values())

    def apply(self, model: LLaMAModel, seed: int = 0) -> None:
        """Freeze `model` and put adapters on its target modules, in place; `seed` draws the initial A."""
        from entrenar.adapters.peft import attach

        attach(model, self, seed)

    def to_peft(self, base_model: str | None = None) -> dict[str, Any]:
        """The content of an adapter_config.json."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_model,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": _copied(self.target_modules),
            "exclude_modules": _copied(self.exclude_modules) or None,
            "layers_to_transform": list(self.layers_to_transform) or None,
            "rank_pattern": dict(self.rank_pattern),
            "alpha_pattern": dict(self.alpha_pattern),
            "use_rslora": self.use_rslora,
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "init_lora_weights": True,
            "modules_to_save": None,
        }

    @staticmethod
    def from_peft(table: Mapping[str, Any], where: str = "adapter_config.json") -> LoRAConfig:
        """From an adapter_config.json; ConfigError, naming the setting, for what entrenar does not compute."""
        settings = settings_of(table, where)
        try:
            return LoRAConfig(**settings)
        except ConfigError as error:
            raise ConfigError(f"{where}: {in_terms_of_peft(str(error), LoRAConfig.section)}") from error


def _listed(names: Any) -> Any:
    """A text of names as a list of them; a pattern, a list and whatever is neither stay as they are."""
    if not isinstance(names, str):
        return names
    parts = [part.strip() for part in names.split(",")]
    if not all(map(is_name, parts)):
        return names
    return ["all-linear" if part.lower() == "all-linear" else part for part in parts] if names else []


def _copied(names: list[str] | str) -> list[str] | str:
    return names if isinstance(names, str) else list(names)
