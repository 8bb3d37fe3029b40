"""The training loop: batches, accumulated gradients, clipping, optimizer, schedule, evaluation, checkpoints."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entrenar.adapters.peft import set_training
from entrenar.autograd import manual_seed, random
from entrenar.data import Batch, DataLoader
from entrenar.errors import ConfigError, NumericsError
from entrenar.io.rendering import today
from entrenar.models.api import LLaMAModel
from entrenar.optim import clip_factor, grad_norm
from entrenar.train import checkpoint, interrupt
from entrenar.train.config import TrainConfig
from entrenar.train.diagnose import first_nonfinite
from entrenar.train.evaluate import evaluate
from entrenar.train.fingerprint import fingerprint
from entrenar.train.step import StepReport


@dataclass
class Trainer:
    """Trains `model` on `loader` as `config` says; `held_out` batches are evaluated every `evaluate_every` steps.

    `on_step` is called after every optimizer step, `on_checkpoint` after every checkpoint. A loss or gradient that is
    not finite raises NumericsError before the weights change; the last checkpoint stays. `reports` (one for each step
    of the run), `baseline` (values that JSON can hold), `run_id` and `date` survive a resume. `fixed` names what
    else must be the same where the run resumes. The first SIGINT, SIGTERM or SIGHUP, where
    `interrupt.heeded`, ends the step, writes a checkpoint and raises Interrupted. ConfigError where the folder has
    another run's checkpoints.
    """

    model: LLaMAModel
    config: TrainConfig
    loader: DataLoader
    held_out: Sequence[Batch] = ()
    on_step: Callable[[StepReport], None] = lambda report: None
    on_checkpoint: Callable[[], None] = lambda: None
    reports: list[StepReport] = field(default_factory=list)
    baseline: dict[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parameters = self.model.trainable_parameters()
        self.optimizer = self.config.make_optimizer(self.parameters)
        self.schedule = self.config.make_schedule(self.optimizer)
        self.step = 0
        self.saved = 0  # the step of the checkpoint on disk
        manual_seed(self.config.training.seed)
        self.run_id, self.date = uuid.uuid4().hex, today()
        self.checkpoint_directory = Path(self.config.checkpointing.directory) / "checkpoint"
        self.fingerprint = fingerprint(self)
        if self.config.checkpointing.resume:
            checkpoint.load(self, self.checkpoint_directory)
            self.saved = self.step
        elif not self.config.checkpointing.overwrite and checkpoint.anything_in(self.checkpoint_directory):
            raise ConfigError(
                f"{self.checkpoint_directory}: holds checkpoints of an earlier run; resume, overwrite, or choose "
                "another directory."
            )

    def run(self) -> list[StepReport]:
        """Train the steps that are left; returns a report for each step of the run, resumed ones included."""
        set_training(self.model, True)
        if not self.saved and self.config.checkpointing.overwrite:
            checkpoint.clear(self.checkpoint_directory)
        self._last_save = time.monotonic()
        with interrupt.deferred():
            while self.step < self.config.training.steps and not interrupt.asked():
                report = self._one_step()
                self.reports.append(report)
                if self._checkpoint_is_due() or interrupt.asked():
                    self.save()
                self.on_step(report)
            if interrupt.asked() and self.step > self.saved:  # since the last look
                self.save()
        return self.reports

    def _checkpoint_is_due(self) -> bool:
        c = self.config.checkpointing
        if self.step == self.config.training.steps:
            return bool(c.every or c.minutes)
        by_time = c.minutes and time.monotonic() - self._last_save >= 60 * c.minutes
        return bool(by_time or (c.every and self.step % c.every == 0))

    def save(self) -> None:
        """Write a checkpoint of the run as it stands, and tell `on_checkpoint`."""
        checkpoint.save(self, self.checkpoint_directory, self.config.checkpointing.keep)
        self.saved, self._last_save = self.step, time.monotonic()
        self.on_checkpoint()

    def _one_step(self) -> StepReport:
        started = time.perf_counter()
        random.set_step(self.step)
        batches = [self.loader.next_batch() for _ in range(self.config.training.gradient_accumulation)]
        trained = sum(batch.trained_tokens for batch in batches)
        loss = sum((self._backward(batch, trained) for batch in batches if batch.trained_tokens), 0.0)
        rate = self.optimizer.lr
        try:
            norm = grad_norm(self.parameters)
        except NumericsError as error:
            raise NumericsError(f"Step {self.step + 1}: {error}") from error
        self.optimizer.step(clip_factor(norm, self.config.training.max_grad_norm))
        self.optimizer.zero_grad()
        self.schedule.step()
        self.step += 1
        every = self.config.training.evaluate_every
        held_out = None
        seconds = time.perf_counter() - started
        if every and self.step % every == 0 and self.held_out:
            held_out = evaluate(self.model, self.held_out)
        tokens = sum(batch.tokens.size for batch in batches)
        return StepReport(self.step, loss, rate, norm, tokens, trained, seconds, held_out)

    def _backward(self, batch: Batch, trained: int) -> float:
        """Add this batch's share of the step's gradient; its share of the loss."""
        loss = self.model.loss(batch.tokens, batch.targets, batch.positions, batch.cu_seqlens, divisor=trained)
        value = loss.item()
        if not math.isfinite(value):
            raise NumericsError(
                f"The loss of step {self.step + 1} is {value}: {first_nonfinite(self.model, batch)} is not finite; "
                "lower the learning rate or look for a bad example."
            )
        loss.backward()
        return value
