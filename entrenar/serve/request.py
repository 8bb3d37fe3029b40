"""A request as the engine takes it, and what comes of it, independent of the protocol that brought it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from entrenar.io.tokenizer import Tokenizer
from entrenar.train.answers import TextStream


@dataclass(frozen=True)
class Settings:
    """How a request is answered; `top` alternatives stand beside each log-probability, None asks for neither.

    `ignore_eos` writes on after an end token, as vLLM's and llama.cpp's servers do where a speed is measured.
    `cache_prompt` goes on from what a slot holds of the prompt, as llama.cpp's server does by default.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    echo: bool = False
    top: int | None = None
    ignore_eos: bool = False
    cache_prompt: bool = True


@dataclass(frozen=True)
class TokenScore:
    """A token's log-probability after those before it (None of a text's first), and the likeliest in its place."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Part:
    """A piece of an answer: text, the scores of its tokens, and why the answer ended where this is its end.

    `error` says in a sentence why there is no answer.
    """

    text: str = ""
    scores: tuple[TokenScore, ...] = ()
    finish: str | None = None
    error: str | None = None


@dataclass
class Job:
    """A request on its way. `tell` is called on the engine's thread with every part; the last has finish or error."""

    model: str
    prompt: Sequence[int]
    settings: Settings
    tell: Callable[[Part], None]
    arrived: float = field(default_factory=time.monotonic)
    cancelled: bool = False  # set by whoever asked, when nobody listens any longer
    produced: int = 0
    cached: int = 0  # tokens of the prompt that were not computed again


class StopText:
    """Text that ends before the first of some strings: what could be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = tuple(stops), ""

    def push(self, text: str) -> tuple[str, bool]:
        """(what is certain, whether a string was found)."""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            return self._held[: min(found)], True
        kept = max((self._overlap(stop) for stop in self._stops), default=0)
        certain = self._held[: len(self._held) - kept]
        self._held = self._held[len(self._held) - kept :]
        return certain, False

    def end(self) -> str:
        """What was held back, at the end of the text."""
        return self._held

    def _overlap(self, stop: str) -> int:
        """The length of the longest end of the held text that `stop` begins with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


class Text:
    """The text of an answer as it grows by tokens, up to a stop string."""

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int], stops: Sequence[str]) -> None:
        self._stream, self._stop = TextStream(tokenizer, before), StopText(stops)

    def push(self, token: int) -> tuple[str, bool]:
        """(what is certain, whether a stop string ended it)."""
        return self._stop.push(self._stream.push(token))

    def end(self) -> str:
        """What was held back."""
        certain, found = self._stop.push(self._stream.end())
        return certain if found else certain + self._stop.end()


def token_score(logits: np.ndarray, token: int, top: int) -> TokenScore:
    """The log-probability of a token by logits (vocab,), and those of the `top` likeliest."""
    wide = logits.astype(np.float64)
    highest = wide.max()
    total = highest + np.log(np.exp(wide - highest).sum())
    best = np.argsort(-wide, kind="stable")[:top]
    return TokenScore(token, float(wide[token] - total), tuple((int(i), float(wide[i] - total)) for i in best))
