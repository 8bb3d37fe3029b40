"""The LLaMA family: configuration, model, weights, generation."""

from entrenar.models.api import LLaMAModel
from entrenar.models.config import LLaMAConfig
from entrenar.models.generate import generate

__all__ = ["LLaMAConfig", "LLaMAModel", "generate"]
