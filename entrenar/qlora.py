"""QLoRA: LoRA over a base in 4 bits."""

from entrenar.adapters.qlora import QLoRAConfig

__all__ = ["QLoRAConfig"]
