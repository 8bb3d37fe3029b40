"""One thread that computes: it takes requests from a queue and runs those that are open through their model together.

A request is admitted when a slot is free; what the slot holds of its prompt, from a request before, is not computed
again. Its prompt runs in chunks, one between two steps of the others (chunked prefill, Agrawal et al., 2023, arXiv
2308.16369), short ones together; then every step gives each open sequence a token (continuous batching, Yu et al.,
Orca, OSDI 2022). Sequences of one model share a forward pass; adapters of one base share slots and weights.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from entrenar.autograd import Tensor, no_grad
from entrenar.errors import EntrenarError
from entrenar.io.tokenizer import Tokenizer
from entrenar.models.api import LLaMAModel
from entrenar.models.caches import Slots
from entrenar.models.generate import PREFILL_CHUNK, sample
from entrenar.serve.request import Job, Part, Text, TokenScore, token_score

SCORED = 64  # positions whose logits are held at once where a prompt is scored


class Busy(EntrenarError):
    """The queue is full."""


class TooMany(EntrenarError):
    """The request has more prompts than the server takes at once."""


@dataclass
class Counts:
    """What the engine did since it began; read by /metrics."""

    requests: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of prompts, that a slot held
    generated_tokens: int = 0
    steps: int = 0
    seconds: float = 0.0  # in which it computed


@dataclass
class _Open:
    """A sequence that has a slot."""

    job: Job
    slot: int
    text: Text
    rng: np.random.Generator
    written: list[int]
    ran: int = 0  # tokens of `written` whose keys and values are held
    scores: list[TokenScore] = field(default_factory=list)  # not told yet

    @property
    def left(self) -> int:
        """Tokens of the prompt that are not through."""
        return len(self.job.prompt) - self.ran

    @property
    def scored(self) -> bool:
        """Whether the prompt's own tokens are scored."""
        return self.job.settings.echo and self.job.settings.top is not None


class Engine:
    """Models by name, all of one base, and the thread that runs them; `computing` sets its threads and precision.

    `submit` may be called on any thread. `close` ends the thread; requests that are open are told so.
    """

    def __init__(
        self,
        models: Mapping[str, LLaMAModel],
        tokenizer: Tokenizer,
        ends: Collection[int],
        computing: AbstractContextManager[None],
        *,
        slots: int,
        context: int,
        queue: int,
        seconds: float,
    ) -> None:
        self.models, self.tokenizer, self.ends = dict(models), tokenizer, ends
        self.context, self.counts = context, Counts()
        self._slots = Slots(next(iter(models.values())), slots, context)
        self._computing, self._longest, self._seconds, self._places = computing, queue, seconds, slots
        self._waiting: deque[Job] = deque()
        self._open: list[_Open] = []
        self._changed, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="entrenar-engine", daemon=True)

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests with a slot."""
        return len(self._open)

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and not self._closing

    def room(self, model: str, prompt: int) -> int:
        """New tokens that a prompt of so many leaves room for."""
        return self.context - self.models[model].prefix_length - prompt

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def submit(self, *jobs: Job) -> None:
        """Queue requests, all or none; Busy where slots and queue have no room, or the engine has ended, TooMany where
        they never have."""
        with self._changed:
            if self._closing:
                raise Busy("The server is shutting down; ask again when it is back.")
            most, here = self._places + self._longest, len(self._open) + len(self._waiting)
            if len(jobs) > most:
                raise TooMany(
                    f"The request has {len(jobs)} prompts, expected at most {most}, the server's --slots and --queue; "
                    "send fewer at once, or start it with a larger --queue."
                )
            if here + len(jobs) > most:
                raise Busy(
                    f"{here} requests are answered or wait, and slots and queue take {most}: there is no room for "
                    f"{len(jobs)} more; ask again later, or start the server with a larger --queue."
                )
            self._waiting.extend(jobs)
            self.counts.requests += len(jobs)
            self._changed.notify()

    def close(self) -> None:
        """End the thread after the step that it is in; every request that is left is told that the server stops."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        left = "The server stopped before the answer ended."
        try:
            with self._computing, no_grad():
                while self._next():
                    started = time.perf_counter()
                    self._turn()
                    self.counts.seconds += time.perf_counter() - started
        except BaseException as error:  # the thread ends; whoever waits must hear of it, and /health say so
            left = f"The server failed: {type(error).__name__}: {error}"
            raise
        finally:
            with self._changed:
                self._closing = True
                jobs = [*(item.job for item in self._open), *self._waiting]
                self._waiting.clear()
            for job in jobs:
                job.tell(Part(error=left))

    def _next(self) -> bool:
        """Admit what there is room for, waiting for it where nothing is open; False at the end."""
        with self._changed:
            while not self._closing and not self._waiting and not self._open:
                self._changed.wait()
            while self._waiting and self._slots.free and not self._closing:
                job = self._waiting.popleft()
                if job.cancelled:
                    self.counts.cancelled += 1
                elif self._late(job):
                    self._fail(job, f"The request waited for {self._seconds:g} s, the server's --timeout.")
                else:
                    self._admit(job)
            return not self._closing

    def _late(self, job: Job) -> bool:
        return time.monotonic() - job.arrived > self._seconds

    def _admit(self, job: Job) -> None:
        rng = np.random.Generator(np.random.Philox(job.settings.seed))
        text = Text(self.tokenizer, job.prompt, job.settings.stop)
        item = _Open(job, 0, text, rng, list(job.prompt))
        reuse = job.settings.cache_prompt and not item.scored
        try:
            item.slot, item.ran = self._slots.open(self.models[job.model], job.prompt, reuse=reuse)
        except (EntrenarError, MemoryError) as error:
            return self._fail(job, error)
        job.cached = item.ran
        self._open.append(item)
        self.counts.prompt_tokens += len(job.prompt)
        self.counts.cached_tokens += job.cached

    def _fail(self, job: Job, why: str | BaseException) -> None:
        self.counts.failed += 1
        job.tell(Part(error=str(why) or type(why).__name__))

    def _turn(self) -> None:
        """A chunk of the oldest prompt that is not through, then a token for every sequence whose prompt is."""
        for item in list(self._open):
            if item.job.cancelled:
                self.counts.cancelled += 1
                self._leave(item)
        prompts = [item for item in self._open if item.left > 0]
        if prompts:
            self._guarded(self._prefill, _together(prompts))
        for name in self.models:
            group = [item for item in self._open if item.left <= 0 and item.job.model == name]
            if group:
                self._guarded(self._decode, group)

    def _guarded(self, run: Callable[[list[_Open]], None], items: list[_Open]) -> None:
        """Run; what is wrong with these sequences (a model that is damaged, say) is their answer's, and no others'."""
        try:
            run(items)
        except (EntrenarError, MemoryError) as error:
            for item in items:
                if item in self._open:
                    self._fail(item.job, error)
                    self._leave(item)

    def _prefill(self, items: list[_Open]) -> None:
        """The next chunk of these prompts; after a last one, the first token. One that is scored runs alone."""
        model, length = self.models[items[0].job.model], min(items[0].left, PREFILL_CHUNK)
        chunk = np.array([item.job.prompt[item.ran : item.ran + length] for item in items], np.int64)
        hidden = self._slots.run(model, [item.slot for item in items], chunk, last_only=not items[0].scored)
        if items[0].scored:
            self._score(items[0], model, hidden)
        last = hidden[:, -1:]
        for item in items:
            item.ran += length
        if any(item.left == 0 and item.job.settings.max_tokens for item in items):
            logits = model.logits(last).numpy()[:, 0]
        for row, item in enumerate(items):
            if item.left > 0:
                continue
            if item.job.settings.echo:
                item.job.tell(Part(self.tokenizer.decode(item.job.prompt), tuple(item.scores)))
                item.scores = []
            if item.job.settings.max_tokens == 0:
                self._finish(item, "length")
            else:
                self._guarded(partial(self._chosen, logits[row]), [item])

    def _score(self, item: _Open, model: LLaMAModel, hidden: Tensor) -> None:
        """The scores of a chunk's tokens by hidden states (1, T, hidden), but that of the next chunk's first."""
        prompt, top = item.job.prompt, item.job.settings.top or 0
        item.scores += [TokenScore(prompt[0], None)] if item.ran == 0 else []
        end = min(item.ran + hidden.shape[1], len(prompt) - 1)
        for first in range(item.ran, end, SCORED):
            logits = model.logits(hidden[:, first - item.ran : min(first + SCORED, end) - item.ran]).numpy()[0]
            item.scores += [token_score(row, prompt[first + i + 1], top) for i, row in enumerate(logits)]

    def _decode(self, items: list[_Open]) -> None:
        """One token for every sequence of a model."""
        model = self.models[items[0].job.model]
        tokens = np.array([[item.written[-1]] for item in items], np.int64)
        hidden = self._slots.run(model, [item.slot for item in items], tokens)
        logits = model.logits(hidden).numpy()[:, 0]
        self.counts.steps += 1
        for item, row in zip(items, logits, strict=True):
            item.ran += 1
            self._guarded(partial(self._chosen, row), [item])

    def _chosen(self, logits: np.ndarray, items: list[_Open]) -> None:
        self._choose(items[0], logits)

    def _choose(self, item: _Open, logits: np.ndarray) -> None:
        """The next token by logits (vocab,): tell its text, and end where it, a stop string or a bound says so."""
        job, settings = item.job, item.job.settings
        processed = self.models[job.model].generation.process(logits, item.written, len(job.prompt))
        token = sample(processed, item.rng, settings.temperature, 0, settings.top_p)
        if settings.top is not None:
            item.scores.append(token_score(logits, token, settings.top))  # of an end token too: clients count on one
        if token in self.ends and not settings.ignore_eos:
            return self._finish(item, "stop")
        item.written.append(token)
        job.produced += 1
        self.counts.generated_tokens += 1
        text, stopped = item.text.push(token)
        if text or (stopped and item.scores):
            job.tell(Part(text, tuple(item.scores)))
            item.scores = []
        if stopped:
            return self._end(item, Part(finish="stop"))
        if job.produced >= settings.max_tokens or self._late(job):
            return self._finish(item, "length")

    def _finish(self, item: _Open, why: str) -> None:
        """The end of an answer, with the text that was held back."""
        self._end(item, Part(item.text.end(), tuple(item.scores), why))

    def _end(self, item: _Open, last: Part) -> None:
        self.counts.finished += 1
        item.job.tell(last)
        self._leave(item)

    def _leave(self, item: _Open) -> None:
        self._open.remove(item)
        self._slots.close(item.slot, item.written[: item.ran])


def _together(prompts: Sequence[_Open]) -> list[_Open]:
    """The first, and those of its model that run with it: their next tokens are as many as it has left."""
    first, length = prompts[0], prompts[0].left
    if first.scored or length > PREFILL_CHUNK // 2:
        return [first]
    alike = [item for item in prompts if item.job.model == first.job.model and not item.scored and item.left >= length]
    return alike[: PREFILL_CHUNK // length]
