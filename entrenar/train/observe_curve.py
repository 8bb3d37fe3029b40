"""The picture of a run's losses in its folder, drawn with each evaluation and at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from entrenar.errors import FormatError, safe
from entrenar.io.atomic import atomic_file
from entrenar.observe import loss_curve
from entrenar.train.callbacks import Callback
from entrenar.train.evaluate import Evaluation
from entrenar.train.folder import LOSS
from entrenar.train.trainer import Trainer

SHARE = 0.01  # of the run's time that drawing may take before its end


class LossCurve(Callback):
    """Draws into `directory`; ConfigError where matplotlib is missing, a sentence to `say` for what fails later."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        loss_curve.check()
        self.path, self.say = directory / LOSS, say
        self._began = time.monotonic()
        self._spent = 0.0
        self._failed = False

    def on_run_start(self, trainer: Trainer) -> None:
        """Count the time of the run from here on."""
        self._began = time.monotonic()

    def on_evaluation(self, trainer: Trainer, evaluation: Evaluation) -> None:
        """Draw, unless drawing has taken more than its share of the run's time."""
        if self._spent <= SHARE * (time.monotonic() - self._began):
            self._draw(trainer)

    def on_run_end(self, trainer: Trainer) -> None:
        """Draw what there is, also where a signal has asked to stop."""
        if trainer.step:
            self._draw(trainer)

    def on_result(self, trainer: Trainer, after: Evaluation | None) -> None:
        """Draw once more, with the loss of the result."""
        if after is not None and not trainer.config.checkpointing.keep_best:  # whose evaluation is drawn already
            self._draw(trainer, after)

    def _draw(self, trainer: Trainer, after: Evaluation | None = None) -> None:
        """Draw the losses so far; whatever fails is said once, and costs the picture alone."""
        if trainer.communicator.rank or self._failed:
            return
        held_out = {report.step: report.held_out.loss for report in trainer.reports if report.held_out is not None}
        if "loss" in trainer.baseline:
            held_out[0] = float(trainer.baseline["loss"])
        if after is not None:
            held_out[trainer.step] = after.loss
        started = time.monotonic()
        try:
            with atomic_file(self.path) as temporary:
                loss_curve.draw(
                    temporary,
                    [(report.step, report.loss) for report in trainer.reports],
                    sorted(held_out.items()),
                    title=f"Loss of {self.path.parent.resolve().name}",
                    best="best checkpoint" if trainer.config.checkpointing.keep_best else "lowest held out",
                    unit="nats a token" if trainer.objective.of_tokens else trainer.config.preference.method,
                )
        except Exception as error:
            self._failed = True
            said = str(error) if isinstance(error, FormatError) else f"{self.path}: {error}"
            self.say(f"The losses are not drawn, and the run goes on without: {safe(said).rstrip('.')}.")
        self._spent += time.monotonic() - started
