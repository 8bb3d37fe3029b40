"""LoRA: low-rank adapters on frozen linears."""

from entrenar.lora.adapter import load_adapter, merge, save_adapter, set_training
from entrenar.lora.config import LoRAConfig

__all__ = ["LoRAConfig", "load_adapter", "merge", "save_adapter", "set_training"]
