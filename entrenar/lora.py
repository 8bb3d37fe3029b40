"""LoRA: low-rank adapters on frozen linears."""

from entrenar.adapters.adapter import load_adapter, merge, save_adapter, set_training
from entrenar.adapters.lora import LoRAConfig

__all__ = ["LoRAConfig", "load_adapter", "merge", "save_adapter", "set_training"]
