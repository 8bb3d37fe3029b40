"""The real checkpoint, opened once for all tests."""

from __future__ import annotations

import functools

from entrenar.io.hub import fetch_default_model
from entrenar.io.tokenizer import Tokenizer
from entrenar.models.checkpoint import Checkpoint


@functools.cache
def checkpoint() -> Checkpoint:
    """SmolLM2-135M-Instruct as it was published, fetched if the cache has no sound copy."""
    return Checkpoint.open(fetch_default_model(progress=False))


@functools.cache
def tokenizer() -> Tokenizer:
    return checkpoint().tokenizer()
