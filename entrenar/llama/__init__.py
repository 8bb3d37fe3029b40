"""The LLaMA family: configuration, model, weights, generation."""

from entrenar.llama.config import LLaMAConfig
from entrenar.llama.generate import generate
from entrenar.llama.model import LLaMAModel

__all__ = ["LLaMAConfig", "LLaMAModel", "generate"]
