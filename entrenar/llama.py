"""The LLaMA family: configuration, model, weights, generation."""

from entrenar.models.config import LLaMAConfig
from entrenar.models.decoder import LLaMAModel
from entrenar.models.generate import generate

__all__ = ["LLaMAConfig", "LLaMAModel", "generate"]
