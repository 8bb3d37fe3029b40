"""LoRAConfig: which linears get adapters, of which rank and strength; to and from PEFT's adapter_config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from entrenar.config import check_dataclass, nearest, option
from entrenar.errors import ConfigError
from entrenar.llama.config import LINEAR_LAYERS

if TYPE_CHECKING:
    from entrenar.llama.model import LLaMAModel

# Settings of PEFT that change the result and that entrenar does not compute, with the values that mean "off".
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layers_to_transform": (None, []),
    "layer_replication": (None, []),
    "exclude_modules": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None, []),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    # the other initialisations (PiSSA, OLoRA, CorDA, LoftQ, ...) change the base weights when PEFT loads the adapter
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}


@dataclass
class LoRAConfig:
    """LoRA (Hu et al., 2021): y = W x + scaling B A dropout(x). Raises ConfigError for a value out of range."""

    section: ClassVar[str] = "lora"  # what messages call the configuration

    rank: int = option(16, help="rank of the update", minimum=1)
    alpha: float = option(32.0, help="strength: the update is scaled by alpha / rank", above=0)
    dropout: float = option(0.0, help="probability that an input of the adapter is dropped", minimum=0, below=1)
    target_modules: list[str] = option(
        factory=lambda: ["q_proj", "v_proj"],
        help='linears that get adapters: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj or "all-linear"',
    )
    use_rslora: bool = option(False, help="scale by alpha / sqrt(rank) instead (Kalajdzievski, 2023)")

    def __post_init__(self) -> None:
        if isinstance(self.target_modules, str):
            self.target_modules = [self.target_modules]
        check_dataclass(self, self.section)
        if "all-linear" in self.target_modules:
            self.target_modules = list(LINEAR_LAYERS)
        if not self.target_modules:
            raise ConfigError(f"{self.section}.target_modules: is empty, expected at least one linear layer.")
        for name in self.target_modules:
            if name not in LINEAR_LAYERS:
                raise ConfigError(
                    f"{self.section}.target_modules: {name!r} is no linear layer of a block; "
                    f"{nearest(name, (*LINEAR_LAYERS, 'all-linear'))}"
                )
        self.target_modules = [name for name in LINEAR_LAYERS if name in self.target_modules]

    @property
    def scaling(self) -> float:
        """The factor of the update."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def apply(self, model: LLaMAModel, seed: int = 0) -> None:
        """Freeze `model` and put adapters on its target modules, in place; `seed` draws the initial A."""
        from entrenar.lora.adapter import attach

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
            "target_modules": list(self.target_modules),
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
        if table.get("peft_type", "LORA") != "LORA":
            raise ConfigError(f"{where}: peft_type is {table['peft_type']!r}, expected 'LORA'.")
        for key, off in UNSUPPORTED.items():
            if key in table and table[key] not in off:
                raise ConfigError(f"{where}: {key} is {table[key]!r}, which is not supported; expected {off[0]!r}.")
        targets = table.get("target_modules")
        if isinstance(targets, str) and targets != "all-linear":
            raise ConfigError(f"{where}: target_modules is the pattern {targets!r}; expected a list of layer names.")
        if targets is None or "r" not in table:
            raise ConfigError(f"{where}: r and target_modules are required.")
        names = [targets] if isinstance(targets, str) else targets
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{where}: target_modules is {targets!r}, expected a list of layer names.")
        rslora = table.get("use_rslora", False)
        try:
            return LoRAConfig(
                rank=table["r"],
                alpha=table.get("lora_alpha", 8),
                dropout=table.get("lora_dropout", 0.0) or 0.0,
                target_modules=[name.split(".")[-1] for name in names],
                use_rslora=False if rslora is None else rslora,
            )
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
