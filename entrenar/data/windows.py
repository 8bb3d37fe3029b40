"""Plain texts to rows of one length, for training from scratch."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np

from entrenar.data.masking import Sample
from entrenar.io.tokenizer import Tokenizer


def text_windows(texts: Iterable[str], tokenizer: Tokenizer, sequence_length: int) -> tuple[list[Sample], int]:
    """Consecutive windows of `sequence_length` tokens over the texts, an end-of-text token after each; all trained.

    Returns them and the number of tokens at the end that fill no window and are left out.
    """
    stream = array("i")
    for text in texts:
        stream.extend(tokenizer.encode(text, parse_special=False))  # plain text holds no special tokens
        if tokenizer.eos_id is not None:
            stream.append(tokenizer.eos_id)
    count = len(stream) // sequence_length
    rows = np.frombuffer(stream, np.int32, count * sequence_length) if count else np.zeros(0, np.int32)
    trained = np.ones(sequence_length, bool)
    trained[:1] = False
    return [Sample(row, trained) for row in rows.reshape(-1, sequence_length)], len(stream) % sequence_length
