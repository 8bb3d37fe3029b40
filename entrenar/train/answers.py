"""Answers of a model: prompts by its chat template, tokens as text while they come, turns that keep their keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from entrenar.errors import ShapeError
from entrenar.io.tokenizer import Tokenizer
from entrenar.models.api import LLaMAModel
from entrenar.models.checkpoint import Checkpoint
from entrenar.models.generate import Cache, generate
from entrenar.train.loading import Base, Source, check_fits
from entrenar.train.options import Sampling
from entrenar.train.stopping import end_tokens

CONTEXT = 4  # tokens before the first that are decoded with it: a word's space belongs to what stands before it
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # the end of a text whose last character lacks bytes


class TextStream:
    """Tokens in, text out as soon as it is certain; all parts together are the text that the tokens decode to."""

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer, self._ids = tokenizer, list(before[-CONTEXT:])
        self._start, self._read = 0, len(self._ids)

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character lacks bytes."""
        self._ids.append(token)
        return "" if self._text().endswith(UNFINISHED) else self.end()

    def end(self) -> str:
        """What was held back."""
        before, text = self._tokenizer.decode(self._ids[self._start : self._read]), self._text()
        self._start, self._read = self._read, len(self._ids)
        return text[len(before) :]

    def _text(self) -> str:
        return self._tokenizer.decode(self._ids[self._start :])


@dataclass
class Answer:
    """What came of a prompt. `finish` is "stop" where the model ended its text, else "length"."""

    text: str = ""
    prompt_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    seconds: float = 0.0  # of the whole
    first_token: float = 0.0  # seconds until it stood
    finish: str = "length"

    @property
    def rate(self) -> float:
        """Tokens in a second after the first; 0 where there are fewer than two."""
        spent = self.seconds - self.first_token
        return (len(self.tokens) - 1) / spent if len(self.tokens) > 1 and spent > 0 else 0.0

    def table(self) -> dict[str, Any]:
        """What --json prints of it."""
        return {
            "text": self.text,
            "finish": self.finish,
            "prompt_tokens": self.prompt_tokens,
            "tokens": len(self.tokens),
            "seconds": self.seconds,
            "first_token_seconds": self.first_token,
            "tokens_per_second": self.rate,
        }


class Speaker:
    """A loaded model that answers. It keeps the keys and values of the last sequence for what continues it."""

    def __init__(self, checkpoint: Checkpoint, model: LLaMAModel, sampling: Sampling) -> None:
        self.tokenizer, self.model, self.sampling = checkpoint.tokenizer(), model, sampling
        self.model.generation.check()
        self.ends = tuple(end_tokens(model, self.tokenizer))
        self._cache = Cache()

    @staticmethod
    def load(source: Source, adapter: str | None, sampling: Sampling) -> Speaker:
        """The model of `source` with `adapter`; EntrenarError, before it is read, where something does not fit."""
        checkpoint = source.open()
        checkpoint.origin.generation.check()
        if adapter is not None:
            check_fits(checkpoint, adapter)
        return Speaker(checkpoint, Base(checkpoint, source.storage(checkpoint)).model(adapter), sampling)

    def chat_tokens(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The prompt for an answer to `messages`, by the model's chat template, after the system message."""
        system = self.sampling.system
        first = [] if system is None else [{"role": "system", "content": system}]
        return self.tokenizer.apply_chat_template([*first, *messages], add_generation_prompt=True)

    def plain_tokens(self, text: str) -> list[int]:
        """The tokens of a text that is to be continued, begun as the model's texts begin."""
        return self.tokenizer.encode(text, add_bos=True)

    def answer(self, prompt: Sequence[int], say: Callable[[str], None] = lambda text: None) -> Answer:
        """Continue `prompt`, giving `say` the text as it comes; ShapeError where the context has no room for it.

        After KeyboardInterrupt `partial` holds what came so far.
        """
        s, room = self.sampling, self.model.config.context - self.model.prefix_length - len(prompt)
        if not prompt:
            raise ShapeError("The prompt is empty; expected at least one token.")
        if room < 1:
            raise ShapeError(
                f"The prompt has {len(prompt)} tokens, which leave no room for an answer in the model's context of "
                f"{self.model.config.context}; shorten it."
            )
        self.partial = found = Answer(prompt_tokens=len(prompt))
        stream, started = TextStream(self.tokenizer, prompt), time.perf_counter()

        def heard(token: int) -> None:
            found.tokens.append(token)
            found.seconds = time.perf_counter() - started
            found.first_token = found.first_token or found.seconds
            text = stream.push(token)
            if text:
                found.text += text
                say(text)

        wanted = min(s.max_tokens, room)
        chosen = {"temperature": s.temperature, "top_k": s.top_k, "top_p": s.top_p, "seed": s.seed}
        generate(
            self.model,
            list(prompt),
            max_new_tokens=wanted,
            stop=self.ends,
            on_token=heard,
            cache=self._cache,
            **chosen,  # type: ignore[arg-type]
        )
        rest = stream.end()
        found.text += rest
        if rest:
            say(rest)
        found.seconds = time.perf_counter() - started
        found.finish = "length" if len(found.tokens) == wanted else "stop"
        return found
