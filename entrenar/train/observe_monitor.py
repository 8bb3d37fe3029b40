"""The monitor of a run (--monitor): anomalies of its steps and of the machine, as lines, events, metrics and records.

Steps are scored in the run's own thread; the machine is sampled by a daemon thread, which also writes the records.
"""

from __future__ import annotations

import json
import math
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from entrenar.errors import FormatError, NumericsError
from entrenar.io.atomic import atomic_file
from entrenar.observe.anomaly import AT_ONCE, Anomaly, Episode, Step, StepDetector, read_anomalies
from entrenar.observe.events import Span, Subscriber, event, metric, subscribe, unsubscribe
from entrenar.observe.resources import Resources, difference
from entrenar.observe.robust import Window, severity
from entrenar.observe.watch import Watch
from entrenar.train.callbacks import Callback
from entrenar.train.folder import ANOMALIES
from entrenar.train.health import DEAD_AFTER, UpdateRatios, dead_adapters
from entrenar.train.step import StepReport
from entrenar.train.trainer import Trainer

SPIKES = ("loss_spike", "grad_norm_spike")
MOMENTARY = ("nonfinite", "dead_adapter", "plateau")  # kinds of anomalies that have no end
INTERVAL = 1.0  # seconds between samples of the machine
RATIOS_EVERY, RATIO = 10, 0.1  # steps between looks at the updates; a ratio below this is no anomaly
ROLLBACKS = 3  # to one checkpoint, before the run stops
MOST = 10_000  # anomalies that are kept


class Records:
    """anomalies.jsonl: a line an episode, written as a whole when something changed; the first failure is the last."""

    def __init__(self, path: Path) -> None:
        self.path, self._found, self._changed, self._failed = path, list[Anomaly](), False, False
        self._lock = threading.Lock()

    def add(self, found: Anomaly) -> None:
        """Keep an anomaly."""
        with self._lock:
            if len(self._found) < MOST:
                self._found.append(found)
            self._changed = True

    def changed(self) -> None:
        """One of them is over."""
        self._changed = True

    def read(self, last: int) -> None:
        """Take over what an earlier part of the run wrote of steps up to `last`."""
        try:
            self._found = [found for found in read_anomalies(self.path) if found.step <= last]
        except FormatError as error:
            with suppress(Exception):  # a filter that makes errors of warnings
                warnings.warn(f"{error} It is written anew, without the anomalies of before.", stacklevel=2)

    def flush(self) -> None:
        """Write them where something changed."""
        if not self._changed or self._failed:
            return
        self._changed = False
        with self._lock:
            lines = [json.dumps(found.table(), ensure_ascii=False) + "\n" for found in self._found]
        try:
            with atomic_file(self.path) as temporary:
                temporary.write_text("".join(lines), encoding="utf-8")
        except OSError as error:
            self._failed = True
            with suppress(Exception):  # a filter that makes errors of warnings
                warnings.warn(f"{self.path} cannot be written ({error}); anomalies are shown only.", stacklevel=2)


class Monitor(Callback, Subscriber):
    """Watches a run and its machine; `on_spike` is what happens at a spike: warn, stop or rollback.

    `resources` and `interval` are for tests.
    """

    def __init__(
        self,
        directory: Path,
        console: Console,
        on_spike: str = "warn",
        *,
        resources: Resources | None = None,
        interval: float = INTERVAL,
    ) -> None:
        self.directory, self.console, self.on_spike, self.interval = directory, console, on_spike, interval
        self.resources = resources or Resources(directory)
        self.records = Records(directory / ANOMALIES)
        self.detector, self.watch = StepDetector(), Watch()
        self.step, self._is_writer = 0, True
        self._waiting: deque[tuple[Anomaly, bool]] = deque()  # of the thread: their span events belong to the run's
        self._open: list[Anomaly] = []  # those that were told and last
        self._before: dict[str, float] = {}
        self._after: dict[str, float] | None = None
        self._ratios: UpdateRatios | None = None
        self._ratio_windows: dict[str, tuple[Window, Episode]] = {}
        self._rollbacks: dict[Path, int] = {}
        self._stop = threading.Event()

    # ------------------------------------------------------------------ the run
    def around_run(self, trainer: Trainer) -> AbstractContextManager[object]:
        """The machine is watched for as long as the run lasts."""
        self._is_writer = trainer.communicator.rank == 0
        self.step = trainer.step
        return self._watching()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self._watch, name="entrenar-monitor", daemon=True)
        self._stop.clear()
        subscribe(self)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(timeout=10)
            unsubscribe(self)
            if self._is_writer:
                self.records.flush()

    def on_run_start(self, trainer: Trainer) -> None:
        """Learn what is usual from the steps before a resume."""
        if trainer.reports:
            self.records.read(trainer.step)
        self._learn(trainer)

    def _learn(self, trainer: Trainer) -> None:
        for report in trainer.reports[-PAST:]:
            self.detector.observe(_seen(report, 0.0))

    def on_span_start(self, span: Span) -> None:
        """A step begins: what the machine does counts from now."""
        if span.name == "entrenar.step":
            self._before, self._after = self.resources.sample(), None

    def on_span_end(self, span: Span) -> None:
        """The step's update is done; evaluation and checkpoint, which may follow, are not the step's."""
        if span.name == "optimizer":
            self._after = self.resources.sample()

    def on_run_end(self, trainer: Trainer) -> None:
        """Tell the run's span of what the thread has found since the last step."""
        self._emit_waiting()

    def on_error(self, trainer: Trainer, error: BaseException) -> None:
        """Tell the run's span of what the thread has found before the error."""
        self._emit_waiting()

    def on_phase(self, trainer: Trainer, phase: str) -> None:
        """Look at the weights before an update, and tell the span of what the thread has found."""
        self._emit_waiting()
        if phase == "optimizer" and (trainer.step + 1) % RATIOS_EVERY == 0:
            self._ratios = UpdateRatios(trainer.parameters)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """Score the step; its report says what the machine gave it."""
        self.step = report.step
        delta = difference(self._before, self._after) if self._after else {}
        report = replace(trainer.reports[-1], resources={name: value for name, value in delta.items() if value})
        trainer.reports[-1] = report
        begun, ended = self.detector.observe(_seen(report, time.time()))
        begun += [*self._dead(trainer), *self._updates(report.step)]
        for found in begun:
            self._tell(found)
        for found in ended:
            self._over(found)
        self._emit_waiting()
        spike = next((found for found in begun if found.kind in SPIKES and found.severity == "high"), None)
        if spike is not None:
            self._act(trainer, spike)

    def on_nonfinite(self, trainer: Trainer, error: NumericsError) -> None:
        """A loss or gradient is not finite: an anomaly, from which a run on one machine can be rolled back."""
        step = trainer.step + 1
        opened = [found for kind in SPIKES if (found := self.detector.open(kind)) is not None]
        why = [f"after a {found.kind.replace('_', ' ')} since step {found.step}" for found in opened]
        why = why or ["no spike came before: a bad example, or numbers beyond float32"]
        said = str(error).removeprefix(f"Step {step}: ")
        sentence = f"step {step}: {said} ({why[0]})"
        found = Anomaly(step, time.time(), "nonfinite", "high", math.inf, math.nan, math.nan, None, why, sentence)
        self._tell(replace(found, z=AT_ONCE))
        if self.on_spike == "rollback" and trainer.communicator.size == 1:  # other ranks wait inside the step
            self._act(trainer, found)

    def on_rollback(self, trainer: Trainer, path: Path) -> None:
        """Begin to learn anew what is usual."""
        for found in self.detector.forget(trainer.step):
            self._over(found)
        self.step = trainer.step
        self._learn(trainer)
        self._show(f"rolled back to {path}: the run continues after step {trainer.step} with the data that follows")

    def _act(self, trainer: Trainer, spike: Anomaly) -> None:
        """What on_spike says; NumericsError where the run stops."""
        if self.on_spike == "warn":
            return
        if self.on_spike == "stop":
            raise NumericsError(f"{spike.sentence}; stopped, as observe.on_spike says; checkpoints are kept.")
        path = trainer.roll_back(spike.step)
        if path is None:
            raise NumericsError(
                f"{spike.sentence}; there is no checkpoint before step {spike.step} to roll back to; write them more "
                "often (checkpointing.every)."
            )
        self._rollbacks[path] = self._rollbacks.get(path, 0) + 1
        if self._rollbacks[path] > ROLLBACKS:
            raise NumericsError(
                f"{spike.sentence}; {path} was rolled back to {ROLLBACKS} times, and the spike came again; lower the "
                "learning rate."
            )

    # ------------------------------------------------------------------ weights
    def _dead(self, trainer: Trainer) -> list[Anomaly]:
        if trainer.step != DEAD_AFTER:
            return []
        dead, count = dead_adapters(trainer.parameters)
        if not dead:
            return []
        why = ["no gradient reaches them, or their learning rate is zero"]
        sentence = f"step {trainer.step}: {len(dead)} of {count} adapters are dead (B = 0), {dead[0]} first; {why[0]}"
        level, score = ("high", 5.0) if len(dead) == count else ("medium", 4.0)
        fields = (trainer.step, time.time(), "dead_adapter", level, score, float(len(dead)), 0.0, dead[0])
        return [Anomaly(*fields, causes=why, sentence=sentence)]

    def _updates(self, step: int) -> list[Anomaly]:
        """The layers whose weights change much more than they did."""
        if self._ratios is None:
            return []
        ratios, self._ratios = self._ratios.after_update(), None
        begun = []
        for layer, ratio in ratios.items():
            metric("entrenar_update_ratio", ratio, step=step, layer=layer)
            window, episode = self._ratio_windows.setdefault(
                layer, (Window(32, warm_up=5, relative=0, absolute=0.1, tail=0.97), Episode())
            )
            score = window.score(math.log(ratio)) if ratio > 0 else None
            if score is None:
                continue
            expected = math.exp(score.expected)
            large = ratio >= RATIO and ratio >= 3 * expected
            if episode.ends() and episode.anomaly is not None:
                episode.anomaly.ended = step
                self._over(episode.anomaly)
                episode.anomaly = None
            if episode.begins(score.z, large, large):
                why = ["an update this large loses what the layer has learned; lower the learning rate"]
                sentence = f"step {step}: {layer} changes by {ratio:.2g} of its weights a step, {expected:.2g} before"
                fields = (step, time.time(), "update_ratio", severity(score.z) or "low", score.z, ratio, expected)
                episode.anomaly = Anomaly(*fields, layer, why, f"{sentence}; {why[0]}")
                begun.append(episode.anomaly)
        return begun

    # ------------------------------------------------------------------ the machine
    def _watch(self) -> None:
        """Sample until the run is over; what fails here ends the watching, with a warning, and nothing else."""
        try:
            before = self.resources.sample()
            while not self._stop.wait(self.interval):
                after = self.resources.sample()
                begun, ended = self.watch.observe(difference(before, after), self.step + 1, time.time())
                before = after
                for found in begun:
                    self._waiting.append((found, False))
                    self._tell(found, emit=False)
                for found in ended:
                    self._waiting.append((found, True))
                    self._over(found, emit=False)
                if self._is_writer:
                    self.records.flush()
        except Exception as error:
            with suppress(Exception):
                warnings.warn(f"The machine is watched no more ({type(error).__name__}: {error}).", stacklevel=2)

    # ------------------------------------------------------------------ what is told
    def _tell(self, found: Anomaly, emit: bool = True) -> None:
        self.records.add(found)
        metric("entrenar_anomalies_total", 1, kind=found.kind, severity=found.severity)
        if found.kind not in MOMENTARY:
            self._open.append(found)
            self._count(found.kind)
        if emit:
            _emit(found)
        self._show(f"[{found.severity}] {found.sentence}")

    def _over(self, found: Anomaly, emit: bool = True) -> None:
        """An anomaly ends; one that began before this part of the run was never told."""
        if not any(each is found for each in self._open):
            return
        self._open = [each for each in self._open if each is not found]
        self.records.changed()
        self._count(found.kind)
        if emit:
            _emit_end(found)
        self._show(
            f"[{found.severity}] step {found.ended}: over: {found.kind.replace('_', ' ')} since step {found.step}"
        )

    def _count(self, kind: str) -> None:
        metric("entrenar_anomalies_open", sum(each.kind == kind for each in self._open), kind=kind)

    def _emit_waiting(self) -> None:
        while self._waiting:
            found, over = self._waiting.popleft()
            (_emit_end if over else _emit)(found)

    def _show(self, line: str) -> None:
        if self._is_writer:
            with suppress(OSError):  # the display has its own way to say that nobody reads
                self.console.print(escape(line), soft_wrap=True)


PAST = 128  # steps before a resume that are learned from


def _seen(report: StepReport, now: float) -> Step:
    r = report
    return Step(r.step, now, r.seconds, r.loss, r.grad_norm, r.tokens, r.phases, r.resources).unverified()


def _emit(found: Anomaly) -> None:
    table = found.table()
    values = {name: table[name] for name in ("step", "kind", "severity", "z", "sentence")}
    event("anomaly", **values, cause="; ".join(found.causes))


def _emit_end(found: Anomaly) -> None:
    fields = {"kind": found.kind, "severity": found.severity, "since": found.step}
    event("anomaly over", step=found.ended, **fields)
