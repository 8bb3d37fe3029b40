"""Examples to tokens, with a mark on those that are trained: answers and their end-of-turn, not prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from entrenar.data.formats import Example
from entrenar.errors import ConfigError
from entrenar.io.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sample:
    """Token ids (n,) int32, and for each whether it is a target (predicted from the tokens before it).

    `truncated` says that the example was longer.
    """

    tokens: np.ndarray
    trained: np.ndarray
    truncated: bool = False

    def __len__(self) -> int:
        return len(self.tokens)


def encode_example(
    example: Example, tokenizer: Tokenizer, max_length: int | None = None, *, train_on_prompt: bool = False
) -> Sample:
    """The tokens of a conversation as the model's chat template writes it (an alpaca layout where it has none).

    All assistant turns are trained, their end-of-turn token included; prompts are not, unless `train_on_prompt`.
    Longer ones are cut to `max_length`. As in transformers, the text of a special token inside a message is read as
    that token. Raises ConfigError where the template does not write conversations as growing prefixes.
    """
    segments = (
        _template_segments(example, tokenizer) if tokenizer.chat_template else _plain_segments(example, tokenizer)
    )
    tokens: list[int] = []
    trained: list[bool] = []
    if (
        tokenizer.adds_bos
        and tokenizer.bos_id is not None
        and not segments[0][0].startswith(tokenizer.token(tokenizer.bos_id))
    ):
        tokens, trained = [tokenizer.bos_id], [False]
    parts = tokenizer.encode_parts([text for text, _ in segments])
    for ids, (_, is_answer) in zip(parts, segments, strict=True):
        tokens += ids
        trained += [is_answer or train_on_prompt] * len(ids)
    if trained:
        trained[0] = False  # nothing comes before the first token
    truncated = max_length is not None and len(tokens) > max_length
    return Sample(np.array(tokens[:max_length], np.int32), np.array(trained[:max_length], bool), truncated)


def _template_segments(example: Example, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """(text, is an answer) in order: what the template writes before each assistant turn, and the turn itself."""
    segments: list[tuple[str, bool]] = []
    done = ""
    for index, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        prompt = tokenizer.apply_chat_template(example.messages[:index], add_generation_prompt=True)
        whole = tokenizer.apply_chat_template(example.messages[: index + 1])
        if not prompt.startswith(done) or not whole.startswith(prompt):
            raise ConfigError(
                "The chat template does not write a conversation as an extension of its beginning, so the answers "
                "cannot be told from the prompts; use train_on_prompt with another template."
            )
        answer = whole[len(prompt) :]
        segments += [(prompt[len(done) :], False), *_split_end(answer, tokenizer)]
        done = whole
    return segments


def _split_end(answer: str, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """The answer up to its end-of-turn token is trained; white space that the template writes after it is not."""
    end = tokenizer.token(tokenizer.eos_id)
    if end and end in answer:
        cut = answer.rindex(end) + len(end)
        if cut < len(answer) and not answer[cut:].strip():
            return [(answer[:cut], True), (answer[cut:], False)]
    return [(answer, True)]


def _plain_segments(example: Example, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """The layout of Stanford Alpaca, for a model without a template: the end-of-text token closes each answer."""
    segments: list[tuple[str, bool]] = []
    headings = {"system": "", "user": "### Instruction:\n", "assistant": "### Response:\n"}
    prompt = ""
    for message in example.messages:
        prompt += headings[message["role"]]
        if message["role"] == "assistant":
            segments += [(prompt, False), (message["content"] + tokenizer.token(tokenizer.eos_id), True)]
            prompt = "\n\n"
        else:
            prompt += message["content"] + "\n\n"
    return segments


def text_windows(texts: Sequence[str], tokenizer: Tokenizer, sequence_length: int) -> list[Sample]:
    """Consecutive windows of `sequence_length` tokens over the texts, an end-of-text token after each; all trained.

    The last, shorter window is dropped.
    """
    stream: list[int] = []
    for text in texts:
        stream += tokenizer.encode(text, parse_special=False)  # plain text holds no special tokens
        if tokenizer.eos_id is not None:
            stream.append(tokenizer.eos_id)
    rows = np.array(stream, np.int32)[: len(stream) // sequence_length * sequence_length].reshape(-1, sequence_length)
    trained = np.ones(sequence_length, bool)
    trained[:1] = False
    return [Sample(row, trained) for row in rows]
