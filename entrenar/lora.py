"""LoRA: low-rank adapters on frozen linears."""

from entrenar.adapters.lora import LoRAConfig
from entrenar.adapters.peft import load_adapter, merge, save_adapter, set_training

__all__ = ["LoRAConfig", "load_adapter", "merge", "save_adapter", "set_training"]
