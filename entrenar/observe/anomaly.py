"""Anomalies of a run's steps: slow ones, spikes of loss and gradient norm, a leak, a plateau; each with its causes.

An episode opens at a score of 6 (heavy tails reach 5 too often), or at 3 where two values in a row have it, stays one
anomaly while it lasts, and ends when three values in a row are usual again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from entrenar.config import from_table
from entrenar.observe.causes import Usual, causes
from entrenar.observe.records import json_lines
from entrenar.observe.robust import SEVERITIES, Window, severity, slope, trend

ORDER = [name for _, name in reversed(SEVERITIES)]
AT_ONCE, LASTING, USUAL_AGAIN = 6.0, 2, 3  # score; values in a row that open, and that end, an episode
NEW_USUAL = 30  # values in a row, after which the unusual is the usual
WORSE = 2.0  # how many times as slow a step must be as the first of a slow episode to be another anomaly
# How many times the median a value must be, besides its score, at once and when it lasts.
SLOW_STEP, SLOW_STEPS, LOSS, GRADIENT = 1.5, 1.2, 1.5, 3.0
LEAK_STEPS, LEAK_WARM_UP, LEAK_BYTES, LEAK_TOTAL, LEAK_RISING = 20, 10, 0.5e6, 20e6, 0.8
PLATEAU_STEPS, PLATEAU_BLOCKS, PLATEAU_FALL = 300, 10, 0.002
KEPT = 1000  # resident set sizes that are looked back on
MEGABYTE = 1e6
VERIFY = "verify"  # the phase in which a step is computed again


@dataclass
class Anomaly:
    """Something unusual. `time` is a Unix time, `z` in scatters, `ended` the step at which it was over."""

    step: int
    time: float
    kind: str
    severity: str = field(metadata={"choices": tuple(ORDER)})
    z: float
    value: float
    expected: float
    operation: str | None
    causes: list[str]
    sentence: str
    ended: int | None = None

    @staticmethod
    def from_row(row: Any) -> Anomaly:
        """The anomaly of what `table` gave, read again; ConfigError, naming the key, where it is none."""
        unknown = [name for name in ("value", "expected") if isinstance(row, Mapping) and row.get(name, 0) is None]
        found = from_table(Anomaly, {**row, **dict.fromkeys(unknown, 0.0)} if unknown else row, "anomaly")
        for name in unknown:
            setattr(found, name, math.nan)
        return found

    def table(self) -> dict[str, Any]:
        """The anomaly as values that JSON can hold; a number that is none is null."""
        return {name: None if value != value else value for name, value in vars(self).items()}


def read_anomalies(path: Path) -> list[Anomaly]:
    """Those of an anomalies.jsonl, none where there is no file; FormatError, with the line, where it is damaged."""
    if not path.exists():
        return []
    advice = "the file is damaged: remove it"
    return list(json_lines(path, Anomaly.from_row, "no anomaly", advice, "expected what --monitor writes"))


@dataclass
class Episode:
    """Whether something unusual lasts, by the scores of its values, each given once."""

    anomaly: Anomaly | None = None
    unusual: int = 0
    usual: int = 0
    length: int = 0

    @property
    def learns(self) -> bool:
        """Whether values are to count as usual: not while an anomaly lasts, unless it lasts long."""
        return self.anomaly is None or self.length > NEW_USUAL

    def begins(self, score: float, strong: bool, lasting: bool, at_once: float = AT_ONCE) -> bool:
        """Whether an anomaly opens now: `strong` and `lasting` are whether the effect is large enough for each."""
        self.unusual = self.unusual + 1 if score >= SEVERITIES[-1][0] and lasting else 0
        self.usual = 0 if self.unusual else self.usual + 1
        self.length = self.length + 1 if self.anomaly else 0
        if self.anomaly is not None:
            return False
        return (score >= at_once and strong) or self.unusual >= LASTING

    def ends(self) -> bool:
        """Whether the open anomaly is over."""
        return self.anomaly is not None and self.usual >= USUAL_AGAIN


@dataclass(frozen=True)
class Step:
    """What the detectors see of a step; `resources` is the difference between samples at its beginning and end."""

    step: int
    time: float
    seconds: float
    loss: float
    grad_norm: float
    tokens: int
    phases: Mapping[str, float] = field(default_factory=dict)
    resources: Mapping[str, float] = field(default_factory=dict)

    def unverified(self) -> Step:
        """The step without the time in which it was verified: that makes it no slow one."""
        if VERIFY not in self.phases:
            return self
        rest = {name: seconds for name, seconds in self.phases.items() if name != VERIFY}
        return replace(self, seconds=self.seconds - self.phases[VERIFY], phases=rest)


class StepDetector:
    """Finds the anomalies of a run's steps, given in order."""

    def __init__(self) -> None:
        self.usual = Usual()
        self._windows: dict[tuple[str, int], Window] = {}
        self._loss, self._norm = (Window(40, relative=0, absolute=0.05, tail=0.95) for _ in range(2))
        self._episodes: dict[str, Episode] = {}
        self._resident: deque[tuple[int, float]] = deque(maxlen=KEPT)
        self._losses: deque[float] = deque(maxlen=PLATEAU_STEPS)
        self._flat = False
        self._ended: list[Anomaly] = []

    def observe(self, step: Step) -> tuple[list[Anomaly], list[Anomaly]]:
        """The anomalies that begin at this step, and those that are over."""
        begun = [self._slow(step), self._spike(step, "loss", step.loss), self._spike(step, "grad_norm", step.grad_norm)]
        begun += [self._leak(step), self._plateau(step)]
        self.usual.learn(step.resources)
        for episode in self._episodes.values():
            if episode.ends():
                self._close(episode, step)
        ended, self._ended = self._ended, []
        return [found for found in begun if found is not None], ended

    def _close(self, episode: Episode, step: Step) -> None:
        assert episode.anomaly is not None
        episode.anomaly.ended = step.step
        self._ended.append(episode.anomaly)
        episode.anomaly = None

    def open(self, kind: str) -> Anomaly | None:
        """The anomaly of a kind that lasts now."""
        episode = self._episodes.get(kind)
        return episode.anomaly if episode else None

    def forget(self, step: int) -> list[Anomaly]:
        """Close what is open and begin to learn losses and norms anew: the run has gone back to `step`."""
        ended = [episode.anomaly for episode in self._episodes.values() if episode.anomaly is not None]
        for found in ended:
            found.ended = max(step, found.step)
        self._episodes.clear()
        self._losses.clear()
        for window in (self._loss, self._norm):
            window.values.clear()
        return ended

    # ------------------------------------------------------------------ time
    def _slow(self, step: Step) -> Anomaly | None:
        shape = round(2 * math.log2(max(step.tokens, 1)))  # steps of about as many tokens, within a fifth
        episode = self._episodes.setdefault("slow_step", Episode())
        enter = episode.learns
        score = self._windows.setdefault(("step", shape), _of_time()).score(step.seconds, enter)
        excess = {}
        for name, seconds in step.phases.items():
            found = self._windows.setdefault((name, shape), _of_time()).score(seconds, enter)
            excess[name] = seconds - found.expected if found else 0.0
        if score is None:
            return None
        ratio = step.seconds / max(score.expected, 1e-9)
        if episode.anomaly is not None and step.seconds >= WORSE * episode.anomaly.value and score.z >= AT_ONCE:
            self._close(episode, step)  # far slower than what lasts already: something else
        if not episode.begins(score.z, ratio >= SLOW_STEP, ratio >= SLOW_STEPS):
            return None
        lost = step.seconds - score.expected
        operation = max(excess, key=lambda name: excess[name], default=None)
        why = causes(step.resources, self.usual, lost)
        where = f", most of it in {operation}" if operation and excess[operation] > 0.5 * lost else ""
        sentence = f"step {step.step}: {ratio:.1f}x slower{where}; {'; '.join(why)}"
        return self._made(episode, step, "slow_step", score.z, step.seconds, score.expected, operation, why, sentence)

    # ------------------------------------------------------------------ the training's health
    def _spike(self, step: Step, what: str, value: float) -> Anomaly | None:
        """The logarithm is scored: losses and norms scatter in proportion to their size."""
        window, times = (self._loss, LOSS) if what == "loss" else (self._norm, GRADIENT)
        if value <= 0 or not math.isfinite(value):
            return None
        kind = f"{what}_spike"
        episode = self._episodes.setdefault(kind, Episode())
        score = window.score(math.log(value), episode.learns)
        if score is None:
            return None
        expected = math.exp(score.expected)
        if not episode.begins(score.z, value >= times * expected, value >= times * expected):
            return None
        name = "the loss" if what == "loss" else "the gradient norm"
        sentence = f"step {step.step}: {name} is {value:.4g}, {value / expected:.1f}x the usual {expected:.4g}"
        others = "the gradient norm" if what == "loss" else "the loss"
        other = self._norm if what == "loss" else self._loss
        beside = other.peek(math.log(max(step.grad_norm if what == "loss" else step.loss, 1e-300)))
        high = beside is not None and beside.z >= 3
        why = [f"{others} is {'high' if high else 'as usual'}: " + _meaning(what, high)]
        return self._made(episode, step, kind, score.z, value, expected, None, why, f"{sentence}; {why[0]}")

    def _plateau(self, step: Step) -> Anomaly | None:
        self._losses.append(step.loss)
        if self._flat or len(self._losses) < PLATEAU_STEPS or step.step % PLATEAU_BLOCKS:
            return None
        blocks = np.median(np.reshape(np.fromiter(self._losses, float), (PLATEAU_BLOCKS, -1)), axis=1)
        half = PLATEAU_BLOCKS // 2
        early, late = float(np.median(blocks[:half])), float(np.median(blocks[half:]))
        if trend(blocks) < 0 or late < early * (1 - PLATEAU_FALL):
            return None
        self._flat = True
        why = ["a learning rate too low or too high, or nothing left to learn"]
        sentence = f"step {step.step}: the loss has not fallen in {PLATEAU_STEPS} steps ({early:.4g} to {late:.4g})"
        z = SEVERITIES[-1][0]
        return Anomaly(step.step, step.time, "plateau", "low", z, late, early, None, why, f"{sentence}; {why[0]}")

    # ------------------------------------------------------------------ memory
    def _leak(self, step: Step) -> Anomaly | None:
        """Whether the resident set grows step by step, not in jumps, as caches that fill up do."""
        if "resident_bytes" not in step.resources:
            return None
        self._resident.append((step.step, step.resources["resident_bytes"]))
        episode = self._episodes.setdefault("memory_leak", Episode())
        if len(self._resident) < LEAK_STEPS + LEAK_WARM_UP:
            return None
        values = np.array([size for _, size in list(self._resident)[-LEAK_STEPS:]])
        growth = 0.0
        if values[-1] - values[0] >= LEAK_TOTAL:
            growth, changes = slope(values), np.diff(values)
            if growth < LEAK_BYTES or np.mean(changes >= 0.25 * growth) < LEAK_RISING:
                growth = 0.0
        z = growth / LEAK_BYTES
        if not episode.begins(z, growth > 0, growth > 0):
            return None
        since = self._since(growth)
        growth = slope(np.array([size for number, size in self._resident if number >= since][-LEAK_STEPS:]))
        sentence = f"step {step.step}: RSS grows by {growth / MEGABYTE:.1f} MB a step since step {since}"
        why = [
            f"a memory leak: {values[-1] / MEGABYTE:,.0f} MB are resident; what is kept from step to step is not freed"
        ]
        expected = float(values[0])
        said = f"{sentence}; {why[0]}"
        return self._made(episode, step, "memory_leak", z, float(values[-1]), expected, None, why, said)

    def _since(self, growth: float) -> int:
        """The step at which a growth of `growth` bytes a step began: the last one below which the line is not left."""
        sizes = list(self._resident)
        last_step, last = sizes[-1]
        since = sizes[-LEAK_STEPS][0]
        for step, size in reversed(sizes):
            if abs(size - (last - growth * (last_step - step))) > 4 * growth:
                break
            since = step
        return since

    def _made(
        self,
        episode: Episode,
        step: Step,
        kind: str,
        z: float,
        value: float,
        expected: float,
        operation: str | None,
        why: list[str],
        sentence: str,
    ) -> Anomaly:
        level = severity(z) or ORDER[0]
        episode.anomaly = Anomaly(step.step, step.time, kind, level, z, value, expected, operation, why, sentence)
        return episode.anomaly


def _of_time() -> Window:
    """A window of seconds: what is within some milliseconds is no anomaly."""
    return Window(absolute=0.005)


def _meaning(what: str, high: bool) -> str:
    """What a spike together with the other figure points to."""
    if high:
        return "the run diverges, or a batch is of another kind; lower the learning rate or look at its examples"
    if what == "loss":
        return "a batch of hard or bad examples, rather than a run that diverges"
    return "a batch with steep gradients; clipping limits its update"
