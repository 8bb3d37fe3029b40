"""Answers of the OpenAI API as JSON: whole, or in chunks as they come."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from entrenar.io.tokenizer import Tokenizer
from entrenar.serve.protocol import Asked
from entrenar.serve.request import Job, Part, TokenScore


class Completions:
    """The shape of /v1/completions."""

    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def first(self) -> dict[str, Any] | None:
        """What a stream begins with, before any text."""
        return None

    def choice(self, part: Part, offset: int, *, chunk: bool) -> dict[str, Any]:
        """The content of a choice or of a chunk of it; `offset` is the length of its text before."""
        return {"text": part.text, "logprobs": self._logprobs(part.scores, offset) if part.scores else None}

    def _logprobs(self, scores: Sequence[TokenScore], offset: int) -> dict[str, Any]:
        tokens = [token_text(self._tokenizer, score.token) for score in scores]
        offsets = [offset]
        for token in tokens[:-1]:
            offsets.append(offsets[-1] + len(token))
        return {
            "tokens": tokens,
            "token_logprobs": [score.logprob for score in scores],
            "top_logprobs": [None if score.logprob is None else self._top(score) for score in scores],
            "text_offset": offsets,
        }

    def _top(self, score: TokenScore) -> dict[str, float]:
        return {token_text(self._tokenizer, token): logprob for token, logprob in reversed(score.top)}


class ChatCompletions(Completions):
    """The shape of /v1/chat/completions."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def first(self) -> dict[str, Any] | None:
        """The role."""
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None}

    def choice(self, part: Part, offset: int, *, chunk: bool) -> dict[str, Any]:
        """The content of the message or of a part of it."""
        logprobs = {"content": [self._score(score) for score in part.scores]} if part.scores else None
        if chunk:
            return {"delta": {"content": part.text} if part.text else {}, "logprobs": logprobs}
        return {"message": {"role": "assistant", "content": part.text}, "logprobs": logprobs}

    def _score(self, score: TokenScore) -> dict[str, Any]:
        top = [self._entry(token, logprob) for token, logprob in score.top]
        return self._entry(score.token, score.logprob) | {"top_logprobs": top}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        text = token_text(self._tokenizer, token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token as text: what it decodes to, its name in the vocabulary where it is a part of a character."""
    text = tokenizer.decode([token], skip_special=False)
    return tokenizer.token(token) if "\N{REPLACEMENT CHARACTER}" in text else text


class Envelope:
    """What all parts of an answer have in common."""

    def __init__(self, shape: Completions, asked: Asked) -> None:
        self._shape, self._asked = shape, asked
        self._id, self._created = f"{shape.prefix}-{uuid.uuid4().hex}", int(time.time())

    def whole(self, parts: Sequence[Part], jobs: Sequence[Job]) -> dict[str, Any]:
        """The answer with a part, its whole, for each choice."""
        choices = [
            {"index": index, **self._shape.choice(part, 0, chunk=False), "finish_reason": part.finish}
            for index, part in enumerate(parts)
        ]
        return self._object(self._shape.kind, choices) | {"usage": self.usage(jobs)}

    def first(self) -> list[dict[str, Any]]:
        """The chunks before any text."""
        first = self._shape.first()
        if first is None:
            return []
        return [self._chunk({"index": index, **first, "finish_reason": None}) for index in range(self.count)]

    def chunk(self, index: int, part: Part, offset: int) -> dict[str, Any]:
        """A part of choice `index`, whose text is `offset` long so far."""
        choice = self._shape.choice(part, offset, chunk=True)
        return self._chunk({"index": index, **choice, "finish_reason": part.finish})

    def last(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """The chunk that says what was used."""
        return self._object(self._shape.chunk_kind, []) | {"usage": self.usage(jobs)}

    @property
    def count(self) -> int:
        """Choices."""
        return len(self._asked.prompts)

    def usage(self, jobs: Sequence[Job]) -> dict[str, Any]:
        """Tokens of the prompts, those of them that were not computed again, and of the answers."""
        prompt, produced = sum(map(len, self._asked.prompts)), sum(job.produced for job in jobs)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": produced,
            "total_tokens": prompt + produced,
            "prompt_tokens_details": {"cached_tokens": sum(job.cached for job in jobs)},
        }

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        return self._object(self._shape.chunk_kind, [choice])

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._asked.model,
            "choices": choices,
        }
