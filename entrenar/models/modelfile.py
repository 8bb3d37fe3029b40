"""The Modelfile by which Ollama serves a model, or a model under a GGUF adapter."""

from __future__ import annotations

from pathlib import Path

from entrenar.io.modelfile import modelfile
from entrenar.models.checkpoint import Checkpoint


def modelfile_of(
    checkpoint: Checkpoint, path: str | Path, *, base: str | Path, adapter: str | Path | None = None
) -> tuple[str, list[str]]:
    """The text of a Modelfile at `path`, with what the checkpoint says of its tokenizer, its ends and its sampling.

    `base` is the GGUF file that is served. Returns what is to be known too; raises as `entrenar.io.modelfile.modelfile`
    and `Checkpoint.tokenizer`.
    """
    origin, metadata = checkpoint.origin, checkpoint.metadata
    has_tokenizer = bool(origin.tokenizer_files() if metadata is None else metadata.get("tokenizer.ggml.tokens"))
    return modelfile(
        path,
        base=base,
        adapter=adapter,
        tokenizer=checkpoint.tokenizer() if has_tokenizer else None,
        end_tokens=origin.generation.end_tokens,
        generation_config=origin.generation_config,
        context=checkpoint.config.max_position_embeddings,
    )
