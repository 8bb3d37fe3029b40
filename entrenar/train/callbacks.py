"""Callbacks: what happens around the steps of a run, each given to the trainer when it is made.

A callback hears run start, phases, steps, evaluations, checkpoints, an error and run end. One that raises stops the run
with its error, of which all hear; the last checkpoint stays.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from entrenar.errors import NumericsError
from entrenar.io.atomic import atomic_file
from entrenar.observe.events import metric
from entrenar.train import checkpoint, interrupt, report
from entrenar.train.best import best
from entrenar.train.evaluate import Evaluation
from entrenar.train.folder import CONFIG, JSON_LINES, METRICS
from entrenar.train.step import StepReport
from entrenar.train.summary import SUMMARY, Summary, setting_of

if TYPE_CHECKING:
    from entrenar.train.trainer import Trainer


class Callback:
    """Hears a run; a hook that is not overridden does nothing. Hooks are called in the order of the callbacks."""

    def around_run(self, trainer: Trainer) -> AbstractContextManager[object]:
        """Entered before the run's span begins, and left when it has ended: where observers subscribe."""
        return nullcontext()

    def on_run_start(self, trainer: Trainer) -> None:
        """Training begins, or continues."""

    def on_phase(self, trainer: Trainer, phase: str) -> None:
        """A phase of a step begins: data, forward and backward of each micro-batch, reduce, clip, optimizer."""

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """A step is done; `report` is the last of `trainer.reports`."""

    def on_nonfinite(self, trainer: Trainer, error: NumericsError) -> None:
        """The step's loss or gradient is not finite; `error` ends the run, unless `trainer.roll_back` was asked."""

    def on_rollback(self, trainer: Trainer, path: Path) -> None:
        """The run has gone back to the checkpoint `path`."""

    def on_evaluation(self, trainer: Trainer, evaluation: Evaluation) -> None:
        """The held-out set was evaluated after the step that `trainer.step` says."""

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """A checkpoint was written to `path`."""

    def on_error(self, trainer: Trainer, error: BaseException) -> None:
        """`error` (or a second Ctrl-C) ends the run; it is raised when every callback has heard of it."""

    def on_run_end(self, trainer: Trainer) -> None:
        """The last step is done, or a signal has asked to stop."""

    def on_result(self, trainer: Trainer, after: Evaluation | None) -> None:
        """The result is written; `after` is its evaluation, None where nothing is held out."""


class Evaluate(Callback):
    """Evaluates the held-out set every `every` steps, 0 being never."""

    def __init__(self, every: int) -> None:
        self.every = every

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """Evaluate where it is due."""
        if self.every and report.step % self.every == 0 and trainer.held_out:
            trainer.evaluate()


class SaveCheckpoints(Callback):
    """Saves every `every` steps and every `minutes`, 0 being never, at the end where either is set, and at a signal.

    With `best`, also where the held-out loss is the lowest so far.
    """

    def __init__(self, every: int, minutes: float, best: bool = False) -> None:
        self.every, self.minutes, self.best = every, minutes, best
        self._last = 0.0

    def on_run_start(self, trainer: Trainer) -> None:
        """Begin to count the minutes."""
        self._last = time.monotonic()

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """Save where it is due."""
        found = best(trainer.reports) if self.best else None
        if (found and found.step == report.step) or self._is_due(report.step, trainer.finished) or interrupt.asked():
            trainer.save()

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """Count the minutes anew."""
        self._last = time.monotonic()

    def on_run_end(self, trainer: Trainer) -> None:
        """Save what a signal since the last look would lose."""
        if interrupt.asked() and trainer.step > trainer.saved:
            trainer.save()

    def _is_due(self, step: int, finished: bool) -> bool:
        if finished:
            return bool(self.every or self.minutes or self.best)
        by_time = self.minutes and time.monotonic() - self._last >= 60 * self.minutes
        return bool(by_time or (self.every and step % self.every == 0))


class Record(Callback):
    """Writes metrics and summary into `directory`, at every checkpoint and when it is told to; rank 0 alone.

    `before` is the evaluation of the untrained model, `toml` the configuration, as config.toml keeps it. FormatError
    where a file cannot be written.
    """

    def __init__(self, directory: Path, summary: Summary, toml: str | None = None) -> None:
        self.directory, self.summary, self.toml = directory, summary, toml
        self.before: Evaluation | None = None

    @property
    def metrics(self) -> Path:
        """Where metrics.csv is."""
        return self.directory / METRICS

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """Write the steps that the checkpoint holds."""
        self.write(trainer)

    def write(self, trainer: Trainer, after: Evaluation | None = None) -> None:
        """Write both files; `after` is the evaluation of the trained model."""
        if trainer.communicator.rank:
            return
        self.summary.run = trainer.run_id
        self.summary.setting = setting_of(trainer.config, trainer.fingerprint)
        with checkpoint.writing(self.metrics):
            report.write_metrics(self.metrics, trainer.reports)
            report.write_json_lines(self.directory / JSON_LINES, trainer.reports)
            self.summary.write(self.directory / SUMMARY, trainer.reports, self.before, after)
            if self.toml is not None:
                with atomic_file(self.directory / CONFIG) as temporary:
                    temporary.write_text(self.toml, encoding="utf-8")


class Display(Callback):
    """Shows the steps: a progress bar, or lines every few steps where the output is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._open = ExitStack()

    def on_run_start(self, trainer: Trainer) -> None:
        """Begin to show."""
        steps = report.steps(self.console, trainer.config.training.steps, trainer.step)
        self._show = self._open.enter_context(steps)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """Show a step."""
        self._show(report)

    def on_run_end(self, trainer: Trainer) -> None:
        """Leave the terminal as it was."""
        self._open.close()

    def on_error(self, trainer: Trainer, error: BaseException) -> None:
        """Leave the terminal as it was; where that cannot be written, it is the error that is said."""
        with suppress(OSError):
            self._open.close()


class Metrics(Callback):
    """Emits what a step reports, as events of the table of metrics (observe/metrics.py)."""

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """Emit the figures of a step."""
        metric("entrenar_step", report.step, step=report.step)
        metric("entrenar_loss", report.loss, step=report.step)
        metric("entrenar_gradient_norm", report.grad_norm, step=report.step)
        metric("entrenar_learning_rate", report.learning_rate, step=report.step)
        metric("entrenar_tokens_total", report.tokens, step=report.step)
        metric("entrenar_trained_tokens_total", report.trained_tokens, step=report.step)
        metric("entrenar_step_duration_seconds", report.seconds, step=report.step)
        for phase, seconds in report.phases.items():
            metric("entrenar_phase_duration_seconds", seconds, phase=phase, step=report.step)

    def on_evaluation(self, trainer: Trainer, evaluation: Evaluation) -> None:
        """Emit the held-out loss."""
        metric("entrenar_held_out_loss", evaluation.loss, step=trainer.step)

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """Count the checkpoint."""
        metric("entrenar_checkpoints_total", 1, step=trainer.step)
