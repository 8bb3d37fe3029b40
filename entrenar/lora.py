"""LoRA: low-rank adapters on frozen linears."""

from entrenar.adapters.base import merge, set_training
from entrenar.adapters.gguf import load_gguf_adapter, save_gguf_adapter
from entrenar.adapters.lora import LoRAConfig
from entrenar.adapters.peft import load_adapter, save_adapter

__all__ = [
    "LoRAConfig",
    "load_adapter",
    "load_gguf_adapter",
    "merge",
    "save_adapter",
    "save_gguf_adapter",
    "set_training",
]
