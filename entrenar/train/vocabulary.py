"""A tokenizer beside a model of another vocabulary: used where no example needs a token that the model lacks."""

from __future__ import annotations

from collections.abc import Sequence

from entrenar.data import Example, Sample
from entrenar.errors import FormatError
from entrenar.io.tokenizer import Tokenizer

NAMED = 3  # tokens in a sentence


def vocabulary_remarks(tokenizer: Tokenizer, rows: int) -> list[str]:
    """What is to be said where the tokenizer has entries beyond the model's `rows`; nothing where it has none."""
    extra = tokenizer.vocab_size - rows
    if extra <= 0:
        return []
    names = ", ".join(repr(tokenizer.token(index)) for index in range(rows, min(tokenizer.vocab_size, rows + NAMED)))
    more = f" and {extra - NAMED} more" if extra > NAMED else ""
    return [
        f"The tokenizer has {tokenizer.vocab_size} entries and the model {rows}: {names}{more} cannot be used, and no "
        "example does."
    ]


def check_vocabulary(examples: Sequence[Example], samples: Sequence[Sample], tokenizer: Tokenizer, rows: int) -> None:
    """FormatError, naming the token and the first example, where one has a token beyond the model's `rows`."""
    if tokenizer.vocab_size <= rows:
        return
    for example, sample in zip(examples, samples, strict=True):
        beyond = sample.tokens[sample.tokens >= rows]
        if beyond.size:
            index = int(beyond[0])
            raise FormatError(
                f"{example.where or 'an example'}: has the token {tokenizer.token(index)!r} (id {index}), and the "
                f"model has {rows} tokens; remove it from the text or template, or take a model that has it."
            )


def padding(tokenizer: Tokenizer, rows: int) -> int:
    """The id to fill rows with, which no loss sees: the tokenizer's where the model has it."""
    return tokenizer.pad_id if tokenizer.pad_id is not None and tokenizer.pad_id < rows else 0
