"""The training loop: batches, accumulated gradients, clipping, optimizer, schedule, evaluation, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from entrenar.autograd import manual_seed, random
from entrenar.data import Batch, DataLoader
from entrenar.errors import NumericsError
from entrenar.llama.model import LLaMAModel
from entrenar.lora.adapter import set_training
from entrenar.optim import clip_grad_norm
from entrenar.train import checkpoint
from entrenar.train.config import TrainConfig
from entrenar.train.evaluate import Evaluation, evaluate


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did. `seconds` is its wall time, `tokens` the tokens that ran, trained or not."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    trained_tokens: int
    seconds: float
    held_out: Evaluation | None = None


@dataclass
class Trainer:
    """Trains `model` on `loader` as `config` says; `held_out` batches are evaluated every `evaluate_every` steps.

    `on_step` is called after every optimizer step. A non-finite loss or gradient raises NumericsError before the
    weights change; the last checkpoint stays.
    """

    model: LLaMAModel
    config: TrainConfig
    loader: DataLoader
    held_out: Sequence[Batch] = ()
    on_step: Callable[[StepReport], None] = lambda report: None
    reports: list[StepReport] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parameters = self.model.trainable_parameters()
        self.optimizer = self.config.make_optimizer(self.parameters)
        self.schedule = self.config.make_schedule(self.optimizer)
        self.step = 0
        manual_seed(self.config.training.seed)
        directory = Path(self.config.checkpointing.directory)
        self.checkpoint_directory = directory / "checkpoint"
        if self.config.checkpointing.resume:
            checkpoint.load(self, self.checkpoint_directory)

    def run(self) -> list[StepReport]:
        """Train the steps that are left; returns a report for each."""
        settings = self.config.training
        set_training(self.model, True)
        while self.step < settings.steps:
            report = self._one_step()
            self.reports.append(report)
            every = self.config.checkpointing.every
            if every and (self.step % every == 0 or self.step == settings.steps):
                checkpoint.save(self, self.checkpoint_directory)
            self.on_step(report)
        return self.reports

    def _one_step(self) -> StepReport:
        started = time.perf_counter()
        random.set_step(self.step)
        batches = [self.loader.next_batch() for _ in range(self.config.training.gradient_accumulation)]
        trained = sum(batch.trained_tokens for batch in batches)
        loss = 0.0
        for batch in batches:
            if batch.trained_tokens:
                loss += self._backward(batch, trained)
        rate = self.optimizer.param_groups[0]["lr"]
        norm = clip_grad_norm(self.parameters, self.config.training.max_grad_norm)
        self.optimizer.step()
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
                f"The loss of step {self.step + 1} is {value}; lower the learning rate or look for a bad example. "
                "The weights are those of the step before."
            )
        loss.backward()
        return value
