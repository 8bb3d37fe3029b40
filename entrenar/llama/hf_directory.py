"""Hugging Face model directories: config.json and the tensors of safetensors files."""

from __future__ import annotations

from pathlib import Path

from entrenar.errors import FormatError
from entrenar.io.lazy import LazyTensor
from entrenar.io.safetensors import open_safetensors_directory
from entrenar.llama.config import LLaMAConfig


def read_hf(path: Path) -> tuple[LLaMAConfig, dict[str, LazyTensor], list[str]]:
    """Configuration, tensors by name, and notes on what is ignored; FormatError or ConfigError for what is wrong."""
    notes: list[str] = []
    config_file = path / "config.json"
    if not config_file.exists():
        raise FormatError(f"{path}: has no config.json; expected a Hugging Face model directory.")
    config = LLaMAConfig.from_hf(config_file)
    tensors = dict(open_safetensors_directory(path))
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)  # some writers store the tied head again
    for name in [name for name in tensors if name.endswith("rotary_emb.inv_freq")]:
        del tensors[name]  # a buffer that old checkpoints kept; it follows from the configuration
    return config, tensors, notes
