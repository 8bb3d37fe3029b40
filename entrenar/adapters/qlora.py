"""QLoRAConfig: LoRA adapters over a base in 4 bits.

Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", 2023 (arXiv 2305.14314).
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, fields
from typing import Any

from entrenar.adapters.base import check_no_adapters, tensors_of
from entrenar.adapters.lora import LoRAConfig
from entrenar.adapters.lora_init import needs_original
from entrenar.adapters.options import QLoRAOptions
from entrenar.adapters.peft_table import takes_peft_names
from entrenar.errors import ConfigError
from entrenar.nn.module import Module
from entrenar.nn.quantize import quantize_linears


@takes_peft_names
@dataclass
class QLoRAConfig(QLoRAOptions, LoRAConfig):
    """QLoRA (Dettmers et al., 2023): the decoder linears in 4 bits, frozen, under LoRA adapters."""

    @property
    def lora(self) -> LoRAConfig:
        """The adapters alone."""
        return LoRAConfig(**{spec.name: copy(getattr(self, spec.name)) for spec in fields(LoRAConfig)})

    def check_use(self) -> None:
        """A key about a format that is not made must stay as it is by default."""
        for key, value, needs, used in (
            ("quantize", self.quantize, "quantize_4bit = true", self.quantize_4bit or self.quantize == "auto"),
            (
                "double_quantization",
                "false",
                'quantize = "auto" or "nf4" in 4 bits',
                self.double_quantization or (self.quantize_4bit and self.quantize != "int4"),
            ),
        ):
            if not used:
                raise ConfigError(f"qlora.{key} is {value}, which has no effect without {needs}; leave it out.")

    def storage_options(self) -> dict[str, Any]:
        """The base in 4 bits, unless it stays as it is."""
        quantize = self.quantize if self.quantize_4bit else None
        return {"quantize": quantize, "double_quantization": self.double_quantization}

    def apply(self, model: Module, seed: int = 0) -> None:
        """Quantize what is not quantized yet and put adapters on the target modules, in place; raises as LoRA's."""
        check_no_adapters(model)
        if self.quantize_4bit:
            if needs_original(self.init_lora_weights) and model.originals is None:
                full = tensors_of(model)
                model.originals = lambda name: full[name].numpy() if name in full else None
            unquantized = quantize_linears(model, self.quantize, self.double_quantization)
            model.unquantized = {**model.unquantized, **unquantized}
        self.lora.apply(model, seed)
