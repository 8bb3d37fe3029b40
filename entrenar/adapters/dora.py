"""DoRAConfig: LoRA whose rows are brought to trained norms.

Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024 (arXiv 2402.09353).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from entrenar.adapters.base import Adapter
from entrenar.adapters.dora_linear import DoRALinear
from entrenar.adapters.lora import LoRAConfig
from entrenar.adapters.options import DoRAOptions
from entrenar.adapters.peft_table import takes_peft_names
from entrenar.errors import ConfigError


@takes_peft_names
@dataclass
class DoRAConfig(DoRAOptions, LoRAConfig):
    """DoRA (Liu et al., 2024): LoRA with use_dora, over a base of any weight type."""

    title: ClassVar[str] = "DoRA"
    layer: ClassVar[type[Adapter]] = DoRALinear

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_dora:
            raise ConfigError("dora.use_dora is false, which makes it LoRA; leave it out, or write [lora].")
