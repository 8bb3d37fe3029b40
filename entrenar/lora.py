"""Adapters on a frozen base: LoRA and DoRA, IA3, prefix tuning; their files."""

from entrenar.adapters.base import merge, set_training
from entrenar.adapters.dora import DoRAConfig
from entrenar.adapters.gguf import load_gguf_adapter, save_gguf_adapter
from entrenar.adapters.ia3 import IA3Config
from entrenar.adapters.lora import LoRAConfig
from entrenar.adapters.peft import load_adapter, save_adapter
from entrenar.adapters.prefix import PrefixConfig

__all__ = [
    "DoRAConfig",
    "IA3Config",
    "LoRAConfig",
    "PrefixConfig",
    "load_adapter",
    "load_gguf_adapter",
    "merge",
    "save_adapter",
    "save_gguf_adapter",
    "set_training",
]
