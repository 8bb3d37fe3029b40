"""Examples to tokens, with a mark on those that are trained: answers and their end-of-turn, not prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from entrenar.data.answers import Span, answer_spans, plain_spans
from entrenar.data.formats import Example
from entrenar.errors import ConfigError, FormatError
from entrenar.io.rendering import rendering_date, today
from entrenar.io.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample:
    """Token ids (n,) int32, and for each whether it is a target (predicted from the tokens before it).

    `truncated` says that the example was longer. `weights` (n,) float32 are what the targets count in the loss, None
    where each counts 1.
    """

    tokens: np.ndarray
    trained: np.ndarray
    truncated: bool = False
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, start: int, stop: int) -> Sample:
        """Tokens start to stop, of which the first has nothing before it, so that it is no target."""
        trained = self.trained[start:stop].copy()
        trained[:1] = False
        weights = None if self.weights is None else self.weights[start:stop]
        return Sample(self.tokens[start:stop], trained, stop < len(self), weights)


def encode_example(
    example: Example, tokenizer: Tokenizer, max_length: int | None = None, *, train_on_prompt: bool = False
) -> Sample:
    """The tokens of a conversation as the model's chat template writes it (an alpaca layout where it has none).

    All assistant turns are trained, their end-of-turn token included, but for those of `example.left_out`; prompts are
    not, unless `train_on_prompt`. Longer ones are cut to `max_length`. The text is tokenized once, as in transformers:
    the text of a special token inside a message is read as that token, and a token that stands for characters of an
    answer and of what is beside it is trained. Raises ConfigError or FormatError with `example.where` where the
    template refuses the messages, leaves some out, or does not show where an answer stands.
    """
    if tokenizer.has_template:
        tokenizer.template(example.tools)  # a template that is none is no fault of the record
    with rendering_date(today()):  # one for all renderings of the conversation
        try:
            text, spans, trained_else = _marked(example, tokenizer, train_on_prompt)
            weighted = _weighted(example, tokenizer)
        except (ConfigError, FormatError) as error:
            if not example.where:
                raise
            raise type(error)(f"{example.where}: {error}") from error
    tokens, offsets = tokenizer.encode_with_offsets(text)
    trained = _overlapping(offsets, spans) != trained_else
    weights: np.ndarray | None = None
    if weighted:
        weights = np.ones(len(offsets), np.float32)
        for weight, stands in weighted:
            weights[_overlapping(offsets, stands)] = weight
    if puts_bos(tokenizer, text):
        tokens, trained = [cast(int, tokenizer.bos_id), *tokens], np.concatenate([[trained_else], trained])
        weights = None if weights is None else np.concatenate([np.ones(1, np.float32), weights])
    whole = Sample(np.array(tokens, np.int32), trained, weights=weights)
    return whole.part(0, len(whole) if max_length is None else min(len(whole), max_length))


def encode_segments(segments: Sequence[tuple[bool, str]], tokenizer: Tokenizer) -> Sample:
    """The tokens of texts that stand one behind the other, each trained or not; nothing is put between or around them.

    Each is tokenized alone, as axolotl does for its input_output records: the text of a special token is that token.
    """
    parts = [(tokenizer.encode(text), wanted) for wanted, text in segments]
    tokens = np.array([token for ids, _ in parts for token in ids], np.int32)
    trained = np.array([wanted for ids, wanted in parts for _ in ids], bool)
    trained[:1] = False  # nothing comes before the first token
    return Sample(tokens, trained)


def _marked(example: Example, tokenizer: Tokenizer, train_on_prompt: bool) -> tuple[str, list[Span], bool]:
    """The text, spans of it, and whether what lies outside of them is trained (else what lies inside)."""
    answers = [index for index, message in enumerate(example.messages) if message.get("role") == "assistant"]
    if train_on_prompt:  # no mask is needed but for what is left out
        wanted = [index for index in answers if index in example.left_out]
    else:
        wanted = [index for index in answers if index not in example.left_out]
    return *_spans(example, tokenizer, wanted), train_on_prompt


def _weighted(example: Example, tokenizer: Tokenizer) -> list[tuple[float, list[Span]]]:
    """(weight, spans of the text) of the answers that count less than 1: the least weight first."""
    found = []
    for weight in sorted(set(example.weights.values())):
        chosen = [i for i, other in sorted(example.weights.items()) if other == weight and i not in example.left_out]
        found.append((weight, _spans(example, tokenizer, chosen)[1]))
    return found


def _spans(example: Example, tokenizer: Tokenizer, wanted: Sequence[int]) -> tuple[str, list[Span]]:
    """The text, and where the `wanted` answers stand in it."""
    return (answer_spans if tokenizer.has_template else plain_spans)(example, tokenizer, wanted)


def _overlapping(offsets: Sequence[Span], spans: Sequence[Span]) -> np.ndarray:
    """Which tokens stand for a character within a span (both in order), as transformers marks them."""
    marks, place = np.zeros(len(offsets), bool), 0
    for index, (start, stop) in enumerate(offsets):
        while place < len(spans) and start >= spans[place][1]:
            place += 1
        if place == len(spans):
            break
        marks[index] = stop > spans[place][0]
    return marks


def puts_bos(tokenizer: Tokenizer, text: str) -> bool:
    """Whether a beginning-of-text token comes before this text: where the model wants one and the text has none."""
    wants = tokenizer.adds_bos and (tokenizer.bos_before_chat or not tokenizer.has_template)
    return wants and tokenizer.bos_id is not None and not text.startswith(tokenizer.token(tokenizer.bos_id))
