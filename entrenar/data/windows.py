"""Plain texts to rows of one length, for training from scratch."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from entrenar.data.masking import Sample
from entrenar.data.samples import Samples
from entrenar.io.tokenizer import Tokenizer


def text_windows(
    texts: Iterable[str], tokenizer: Tokenizer, sequence_length: int, folder: str | Path | None = None
) -> tuple[Samples, int]:
    """Consecutive windows of `sequence_length` tokens over the texts, an end-of-text token after each; all trained.

    Returns them (many stand in `folder`, as `Samples` says) and the number of tokens at the end that fill no window and
    are left out.
    """
    windows, trained = Samples(folder=folder), np.ones(sequence_length, bool)
    trained[:1] = False
    stream = array("i")
    for text in texts:
        stream.extend(tokenizer.encode(text, parse_special=False))  # plain text holds no special tokens
        if tokenizer.eos_id is not None:
            stream.append(tokenizer.eos_id)
        whole = len(stream) // sequence_length * sequence_length
        for start in range(0, whole, sequence_length):
            windows.append(Sample(np.array(stream[start : start + sequence_length], np.int32), trained))
        del stream[:whole]
    return windows, len(stream)
