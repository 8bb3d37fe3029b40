"""LoRA: low-rank adapters on frozen linears."""

from entrenar.adapters.base import merge, set_training
from entrenar.adapters.lora import LoRAConfig
from entrenar.adapters.peft import load_adapter, save_adapter

__all__ = ["LoRAConfig", "load_adapter", "merge", "save_adapter", "set_training"]
