"""The Modelfile by which Ollama serves a model, or a model under a GGUF adapter."""

from __future__ import annotations

from pathlib import Path

from entrenar.io.modelfile import write_modelfile
from entrenar.models.checkpoint import Checkpoint


def save_modelfile(
    path: str | Path, checkpoint: Checkpoint, *, base: str | Path | None = None, adapter: str | Path | None = None
) -> list[str]:
    """Write it with what the checkpoint says of its tokenizer, its ends and its sampling; returns what is to be known.

    `base` is the GGUF file to serve: unset is the checkpoint's own. Raises as `write_modelfile`.
    """
    origin = checkpoint.origin
    has_tokenizer = checkpoint.metadata is None or bool(checkpoint.metadata.get("tokenizer.ggml.tokens"))
    return write_modelfile(
        path,
        base=checkpoint.path if base is None else base,
        adapter=adapter,
        tokenizer=checkpoint.tokenizer() if has_tokenizer else None,
        end_tokens=origin.generation.end_tokens,
        generation_config=origin.generation_config,
        context=checkpoint.config.max_position_embeddings,
    )
