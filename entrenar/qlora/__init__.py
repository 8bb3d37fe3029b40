"""QLoRA: LoRA over a base in 4 bits."""

from entrenar.qlora.config import QLoRAConfig

__all__ = ["QLoRAConfig"]
