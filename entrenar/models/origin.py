"""Where a model comes from, with what a saved copy keeps of it beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entrenar.models.generation import Generation

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates",
)


@dataclass(frozen=True)
class Origin:
    """The place of a checkpoint, how it generates, and the tables of its config.json and generation_config.json."""

    path: Path
    generation: Generation
    is_gguf: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    generation_config: Mapping[str, Any] | None = None

    def tokenizer_files(self) -> list[Path]:
        """The files of the tokenizer in a Hugging Face directory, those that are there now."""
        places = [] if self.is_gguf else [self.path / name for name in TOKENIZER_FILES]
        return [place for place in places if place.exists()]
