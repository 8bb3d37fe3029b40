"""The engine step by step: requests that come, end, leave and fail, and what their slots hold afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.adapters.peft import load_adapter
from entrenar.adapters.prefix import PrefixConfig
from entrenar.autograd import no_grad
from entrenar.autograd.precision import matmul_precision
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama import LLaMAModel
from entrenar.models import caches
from entrenar.serve import engine as module
from entrenar.serve.engine import Busy, Engine, TooMany
from entrenar.serve.request import Job, Part, Settings

CONTEXT, VOCABULARY = 48, 250


class Asked:
    """A request, what it was told, and the tokens of its answer."""

    def __init__(self, engine: Engine, prompt: Sequence[int], name: str = "base", **settings: Any) -> None:
        self.parts: list[Part] = []
        self.job = Job(name, list(prompt), Settings(temperature=0, top=0, **settings), self.parts.append)
        engine.submit(self.job)

    @property
    def tokens(self) -> list[int]:
        return [score.token for part in self.parts for score in part.scores]

    @property
    def error(self) -> str | None:
        return self.parts[-1].error if self.parts else None


def turn(engine: Engine) -> None:
    with matmul_precision("highest"), no_grad():
        engine._next()
        engine._turn()


def answered(engine: Engine, prompt: Sequence[int], name: str = "base", **settings: Any) -> Asked:
    asked = Asked(engine, prompt, name, **settings)
    while engine.running or engine.waiting:
        turn(engine)
    return asked


def alone(model: LLaMAModel, prompt: Sequence[int], new: int) -> list[int]:
    with matmul_precision("highest"):
        return model.generate(list(prompt), max_new_tokens=new, stop=()) if new else []


@pytest.fixture
def models(model: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, LLaMAModel]:
    monkeypatch.setattr(module, "PREFILL_CHUNK", 8)
    found = {name: LLaMAModel.from_pretrained(model) for name in ("base", "tuned", "prefixed")}
    load_adapter(found["tuned"], adapter)
    PrefixConfig(num_virtual_tokens=3).apply(found["prefixed"])
    return found


def engine_of(
    models: dict[str, LLaMAModel], place: Path, slots: int, ends: Sequence[int] = (), queue: int = 99
) -> Engine:
    tokenizer = Tokenizer.from_directory(place)
    return Engine(models, tokenizer, ends, nullcontext(), slots=slots, context=CONTEXT, queue=queue, seconds=600)


@pytest.mark.unit
def test_what_a_slot_holds_when_an_answer_ends(models: dict[str, LLaMAModel], model: Path) -> None:
    prompt = list(range(10, 21))
    answer = alone(models["base"], prompt, 6)
    whole = [*prompt, *answer]

    def goes_on(engine: Engine, longer: Sequence[int], held: int) -> None:
        again = answered(engine, longer, max_tokens=2)
        assert again.job.cached == held and again.tokens == alone(models["base"], longer, 2)

    engine = engine_of(models, model, 1)
    assert answered(engine, prompt, max_tokens=6).tokens == answer
    goes_on(engine, [*whole, 99], len(whole) - 1)  # the last token was chosen and never ran

    engine = engine_of(models, model, 1, ends=answer[3:4])
    end = answer.index(answer[3])
    assert answered(engine, prompt, max_tokens=6).tokens == answer[: end + 1]
    goes_on(engine, [*prompt, *answer[:end], 98, 99], len(prompt) + end)  # all but the end token

    engine = engine_of(models, model, 1)
    assert answered(engine, prompt, max_tokens=0).tokens == []
    goes_on(engine, prompt, len(prompt) - 1)

    engine = engine_of(models, model, 1)
    left = Asked(engine, prompt, max_tokens=6)
    turn(engine)  # 8 tokens of the prompt
    left.job.cancelled = True
    goes_on(engine, prompt, 8)
    assert engine.counts.cancelled == 1 and left.parts == []


@pytest.mark.unit
def test_a_pass_that_fails_half_way_leaves_nothing_of_its_tokens(
    models: dict[str, LLaMAModel], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, prompt = engine_of(models, model, 1), list(range(30, 49))
    append = caches.SlotCache.append

    def fails(self: Any, k: Any, v: Any) -> None:
        append(self, k, v)
        if self is engine._slots._layers[-1] and k.shape[1] == 3:  # the last chunk
            raise MemoryError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(caches.SlotCache, "append", fails)
        assert answered(engine, prompt, max_tokens=3).error == "no room"
    assert engine.counts.failed == 1
    other = [*prompt[:17], 9, 9, 9]
    again = answered(engine, other, max_tokens=3)
    assert again.job.cached == 16 and again.tokens == alone(models["base"], other, 3)


@pytest.mark.unit
@pytest.mark.parametrize("seed", range(3))
def test_whatever_comes_leaves_and_fails_the_others_are_answered_as_alone(
    seed: int, models: dict[str, LLaMAModel], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    root = rng.integers(3, VOCABULARY, 30).tolist()
    engine, append = engine_of(models, model, 3), caches.SlotCache.append

    def fails(self: Any, k: Any, v: Any) -> None:
        append(self, k, v)
        if rng.random() < 0.02:
            raise MemoryError("no room")

    monkeypatch.setattr(caches.SlotCache, "append", fails)
    asked: list[Asked] = []
    while len(asked) < 60 or engine.running or engine.waiting:
        if len(asked) < 60 and rng.random() < 0.5:
            earlier = asked[rng.integers(len(asked))] if asked and rng.random() < 0.4 else None  # another turn of it
            begun = root[: rng.integers(1, 30)] if earlier is None else [*earlier.job.prompt, *earlier.tokens][:36]
            prompt = [*begun, *rng.integers(3, VOCABULARY, rng.integers(1, 6)).tolist()]
            name = list(models)[rng.integers(3)] if earlier is None else earlier.job.model
            new = int(rng.integers(0, 7))
            asked.append(Asked(engine, prompt, name, max_tokens=new, cache_prompt=bool(rng.random() < 0.9)))
        if asked and rng.random() < 0.1:
            asked[rng.integers(len(asked))].job.cancelled = True
        if engine.running or engine.waiting:
            turn(engine)
    monkeypatch.undo()
    whole = [one for one in asked if one.parts and one.parts[-1].finish == "length"]
    assert len(whole) > 15 and sum(one.job.cached for one in whole) > 100
    for one in whole:
        assert one.tokens == alone(models[one.job.model], one.job.prompt, one.job.settings.max_tokens), one.job
    assert engine.counts.finished == len(whole) and engine._slots.free == 3


@pytest.mark.unit
def test_what_slots_and_queue_take(models: dict[str, LLaMAModel], model: Path) -> None:
    engine = engine_of(models, model, 2, queue=1)
    jobs = [Job("base", [10, 11], Settings(temperature=0, max_tokens=9), lambda part: None) for _ in range(4)]
    with pytest.raises(TooMany, match=r"^The request has 4 prompts, expected at most 3, the server's --slots and --qu"):
        engine.submit(*jobs)
    engine.submit(*jobs[:3])  # more than the queue, before a slot was given
    turn(engine)
    assert (engine.running, engine.waiting) == (2, 1)
    with pytest.raises(
        Busy, match=r"^3 requests are answered or wait, and slots and queue take 3: there is no room for 1"
    ):
        engine.submit(jobs[3])
    while engine.running or engine.waiting:
        turn(engine)
    engine.submit(jobs[3])
    assert engine.counts.requests == 4
