"""QLoRAConfig: LoRA adapters over a base in 4 bits.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023 (arXiv 2305.14314).
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from entrenar.adapters.lora import LoRAConfig
from entrenar.adapters.peft import check_no_adapters
from entrenar.config import option
from entrenar.nn.quantize import quantize_linears

if TYPE_CHECKING:
    from entrenar.models.api import LLaMAModel


@dataclass
class QLoRAConfig(LoRAConfig):
    """QLoRA (Dettmers et al., 2023): the decoder linears in 4 bits, frozen, under LoRA adapters."""

    section: ClassVar[str] = "qlora"

    quantize_4bit: bool = option(True, help="quantize the decoder linears that are not 4-bit yet")
    quantize: str = option(
        "auto",
        help="4-bit format: auto keeps the 4-bit codes that a file has and makes NF4 of the other decoder linears",
        choices=("auto", "nf4", "int4"),
    )
    double_quantization: bool = option(True, help="keep the scales of NF4 in 8 bits")

    @property
    def lora(self) -> LoRAConfig:
        """The adapters alone."""
        return LoRAConfig(**{spec.name: copy(getattr(self, spec.name)) for spec in fields(LoRAConfig)})

    def apply(self, model: LLaMAModel, seed: int = 0) -> None:
        """Quantize what is not yet 4-bit and put adapters on the target modules, in place."""
        check_no_adapters(model)
        if self.quantize_4bit:
            kind = "nf4" if self.quantize == "auto" else self.quantize
            model.unquantized |= quantize_linears(model, kind, self.double_quantization)
        self.lora.apply(model, seed)
