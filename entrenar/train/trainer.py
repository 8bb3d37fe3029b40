"""The training loop: a step in phases (data, forward, backward, reduce, clip, optimizer), heard by callbacks."""

from __future__ import annotations

import math
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from entrenar.adapters.base import set_training
from entrenar.autograd import Tensor, manual_seed, random
from entrenar.data import Batch, DataLoader
from entrenar.distributed import Communicator, LocalCommunicator
from entrenar.errors import ConfigError, CorruptionError, NumericsError
from entrenar.io.rendering import today
from entrenar.models.api import LLaMAModel
from entrenar.observe.events import span
from entrenar.optim import clip_factor, grad_norm
from entrenar.train import checkpoint, interrupt, state
from entrenar.train.best import best, without_better
from entrenar.train.callbacks import Callback, Evaluate, Metrics, SaveCheckpoints
from entrenar.train.config import TrainConfig
from entrenar.train.diagnose import (
    Nonfinite,
    first_nonfinite,
    first_nonfinite_gradient,
    first_nonfinite_weight,
    is_finite,
)
from entrenar.train.evaluate import Evaluation
from entrenar.train.fingerprint import fingerprint
from entrenar.train.objective import Objective
from entrenar.train.step import StepReport
from entrenar.train.verify import Verifier

UNWATCHED: AbstractContextManager[object] = nullcontext()
SPAN_ATTRIBUTES = ("loss", "learning_rate", "grad_norm", "tokens", "trained_tokens")  # of a step's span: its report's


@dataclass
class Trainer:
    """Trains `model` on `loader` as `config` says; `held_out` batches are evaluated every `evaluate_every` steps.

    `callbacks` hear the run, after those that evaluate and save as `config` says. A loss or gradient that is not finite
    raises NumericsError before the weights change; the last checkpoint stays. `reports` (one for each step of the run),
    `baseline` (values that JSON can hold), `run_id` and `date` survive a resume. `fixed` names what else must be the
    same where the run resumes. The first SIGINT, SIGTERM or SIGHUP, where `interrupt.heeded`, ends the step, writes a
    checkpoint and raises Interrupted. ConfigError where the folder has another run's checkpoints. The micro-batches of
    a step are shared out among the ranks of `communicator`, of which rank 0 writes.
    """

    model: LLaMAModel
    config: TrainConfig
    loader: DataLoader
    held_out: Sequence[Batch] = ()
    callbacks: Sequence[Callback] = ()
    communicator: Communicator = field(default_factory=LocalCommunicator)
    reports: list[StepReport] = field(default_factory=list)
    baseline: dict[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    objective: Objective = field(default_factory=Objective)

    def __post_init__(self) -> None:
        self.config = self.config.counted(self.loader.rows)
        t, c = self.config.training, self.config.checkpointing
        checkpoint.check_compression(c.compression)
        self.callbacks = [
            Evaluate(t.evaluate_every),
            SaveCheckpoints(c.every, c.minutes, c.keep_best),
            Metrics(),
            *self.callbacks,
        ]
        self.parameters = self.model.trainable_parameters()
        self.optimizer = self.config.make_optimizer(self.parameters)
        self.schedule = self.config.make_schedule(self.optimizer)
        self.step = 0
        self.exhausted = False  # no better evaluation came for as long as early stopping waits
        self.saved = 0  # the step of the checkpoint on disk
        self.earlier_steps: int | None = None  # what the curve of the learning rate was made for, before a resume
        every = self.config.observe.verify_every
        self.verifier = Verifier(self.model, every) if every else None
        self._watch = UNWATCHED  # around forward and backward
        self._verifying = False  # the step under way is verified
        self._again = False  # what is computed has been computed before in this step
        self._back: Path | None = None  # the checkpoint to which the run goes back before its next step
        manual_seed(t.seed)
        self.run_id, self.date = self.communicator.broadcast((uuid.uuid4().hex, today()))
        self.checkpoint_directory = Path(c.directory) / "checkpoint"
        self.fingerprint = fingerprint(self.config, self.model, self.loader.samples, self.held_out, self.fixed)
        if c.resume:
            self._resume()
        elif not c.overwrite and checkpoint.anything_in(self.checkpoint_directory):
            raise ConfigError(
                f"{self.checkpoint_directory}: holds checkpoints of an earlier run; resume, overwrite, or choose "
                "another directory."
            )

    # ------------------------------------------------------------------ the run
    def run(self) -> list[StepReport]:
        """Train the steps that are left; returns a report for each step of the run, resumed ones included.

        Then the model has the weights of the result, which are an average with schedule-free optimizers.
        """
        set_training(self.model, True)
        self.optimizer.train()
        if self.communicator.rank == 0:
            if self.saved:  # a run killed after a save has not removed those before
                checkpoint.prune(self.checkpoint_directory, *self._kept())
            elif self.config.checkpointing.overwrite:
                checkpoint.clear(self.checkpoint_directory)
        with interrupt.deferred(), ExitStack() as around:
            for callback in self.callbacks:
                around.enter_context(callback.around_run(self))
            with span("entrenar.run", run=self.run_id):
                try:
                    self._tell("on_run_start")
                    while not self.finished and not interrupt.asked():
                        self._heard_step()
                        if self._back is not None:
                            self._go_back(self._back)
                    self._tell("on_run_end")
                except BaseException as error:
                    self._tell_error(error)
                    raise
                finally:
                    self.optimizer.eval()
        return self.reports

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or early stopping has ended the run."""
        return self.exhausted or self.step >= self.config.training.steps

    def _look_for_better(self) -> None:
        t = self.config.training
        count = without_better(self.reports, t.early_stopping_threshold) if t.early_stopping_patience else 0
        self.exhausted = 0 < t.early_stopping_patience <= count

    def _heard_step(self) -> None:
        """A step with its span, of which every callback hears."""
        with span("entrenar.step", step=self.step + 1) as here:
            try:
                report = self._train_step()
            except NumericsError as error:
                self._tell("on_nonfinite", error)
                if self._back is None:
                    raise
                return
            self.reports.append(report)
            here.set(**{key: getattr(report, key) for key in SPAN_ATTRIBUTES})
            for callback in self.callbacks:
                callback.on_step(self, self.reports[-1])

    def evaluate(self) -> Evaluation:
        """Evaluate the held-out set; the last report has the result."""
        with span("evaluate", step=self.step) as here, self.optimizer.evaluating():
            found = self.objective.evaluate(self.model, self.held_out, self.step)
            here.set(loss=found.loss, tokens=found.tokens)
        self.reports[-1] = replace(self.reports[-1], held_out=found)
        self._look_for_better()
        self._tell("on_evaluation", found)
        return found

    def _tell(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(self, *arguments)

    def _tell_error(self, error: BaseException) -> None:
        """Tell every callback; `error` is what counts, whatever they raise."""
        for callback in self.callbacks:
            try:
                callback.on_error(self, error)
            except Exception as another:
                warnings.warn(
                    f"{type(callback).__name__}.on_error raised {type(another).__name__}: {another}", stacklevel=2
                )

    # ------------------------------------------------------------------ a step
    def _train_step(self) -> StepReport:
        started = time.perf_counter()
        self._seconds: dict[str, float] = {}
        random.set_step(self.step)
        with self._phase("data"):
            batches, tokens, trained, weight = self._next_batches()
        self._micro_batches = batches, weight
        self._verifying = self.verifier is not None and self.verifier.is_due(self.step + 1)
        loss = self._reduce(self._gradients(batches, weight))
        norm, scale = self._clip()
        rate = self.optimizer.lr
        self._update(scale)
        seconds = time.perf_counter() - started
        return StepReport(self.step, loss, rate, norm, tokens, trained, seconds, phases=self._seconds)

    def _next_batches(self) -> tuple[list[Batch], int, int, float]:
        """This rank's micro-batches, and the tokens, trained tokens and their weights of all ranks."""
        count = self.config.training.gradient_accumulation
        batches = self.loader.next_batches(count, self.communicator.rank, self.communicator.size)
        each = [(batch.tokens.size, batch.trained_tokens, self.objective.weight(batch)) for batch in batches]
        counts = np.array(each, np.float64).reshape(-1, 3).sum(0)  # integers below 2**53 are exact
        self.communicator.all_reduce(counts)
        return batches, int(counts[0]), int(counts[1]), float(counts[2])

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """A part of a step: told to the callbacks, a span, and its seconds summed over the micro-batches."""
        if self._again:
            yield
            return
        self._tell("on_phase", name)
        started, verified = time.perf_counter(), self._seconds.get("verify", 0.0)
        with span(name):
            yield
        inside = self._seconds.get("verify", 0.0) - verified  # counted already
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started - inside

    def _gradients(self, batches: list[Batch], weight: float) -> float:
        """Add the gradients of this rank's micro-batches, verified where that is due; the sum of their losses."""
        if self.verifier is None or not self._verifying:
            return self._passes(batches, weight)

        def watched(recording: AbstractContextManager[object]) -> float:
            self._watch = recording
            try:
                return self._passes(batches, weight)
            finally:
                self._watch = UNWATCHED

        with self._agreed():
            return self.verifier.gradients(self.step + 1, self.parameters, watched, self._repeat)

    @contextmanager
    def _repeat(self) -> Iterator[None]:
        """Around what is computed once more: one phase, whatever the parts."""
        with self._phase("verify"):
            self._again = True
            try:
                yield
            finally:
                self._again = False

    @contextmanager
    def _agreed(self) -> Iterator[None]:
        """Around what each rank verifies: a CorruptionError of one is raised in all, with what is kept."""
        error: CorruptionError | None = None
        try:
            yield
        except CorruptionError as raised:
            error = raised
        ranks = np.array([error is not None], np.int64)
        self.communicator.all_reduce(ranks)
        if not ranks[0]:
            return
        assert self.verifier is not None
        if error is None:
            error = CorruptionError(f"Silent data corruption in step {self.step + 1}, on another rank.")
        kept = f"{self.checkpoint_directory}/step-{self.saved} is kept" if self.saved else "there is no checkpoint"
        error.args = (
            f"{error} Nothing is written of this step or after it; {kept}, and the last step verified was "
            f"{self.verifier.clean or 'none'}. Test the CPU and the memory of this machine before it trains on.",
        )
        raise error

    def _passes(self, batches: list[Batch], weight: float) -> float:
        loss = 0.0
        for batch in batches:
            if batch.trained_tokens:
                share = self._forward(batch, weight)
                loss += share.item()
                self._backward(share)
        return loss

    def _forward(self, batch: Batch, weight: float) -> Tensor:
        """The loss of a micro-batch, as its share of the loss of a step whose trained tokens weigh so much."""
        with self._phase("forward"):
            with self._watch:
                loss = self.objective.loss(self.model, batch, weight)
            if not math.isfinite(loss.item()):
                found = first_nonfinite(self.model, batch)
                found.tell("forward", self.step + 1)
                raise NumericsError(
                    f"The loss of step {self.step + 1} is {loss.item()}: {found} is not finite; lower the learning "
                    "rate or look for a bad example."
                )
        return loss

    def _backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch's loss."""
        with self._phase("backward"), self._watch:
            loss.backward()

    def _reduce(self, loss: float) -> float:
        """Sum gradients and losses over the ranks; the loss of the step."""
        with self._phase("reduce"):
            reached = np.array([tensor.grad is not None for _, tensor in self.parameters], np.int64)
            self.communicator.all_reduce(
                reached
            )  # a rank without a micro-batch has no gradients, and sums all the same
            for (_, tensor), ranks in zip(self.parameters, reached, strict=True):
                if ranks:
                    if tensor.grad is None:
                        tensor.grad = Tensor(np.zeros(tensor.shape, np.float32))
                    self.communicator.all_reduce(tensor.grad.numpy())
            total = np.array([loss])
            self.communicator.all_reduce(total)
        return float(total[0])

    def _clip(self) -> tuple[float, float]:
        """The joint norm of the gradients, and the factor by which the update scales them down."""
        with self._phase("clip"):
            try:
                norm = self._norm()
            except NumericsError as error:
                where = self._nonfinite_gradient()
                where.tell("backward", self.step + 1)
                raise NumericsError(f"Step {self.step + 1}: {error} It came with {where}.") from error
            return norm, clip_factor(norm, self.config.training.max_grad_norm)

    def _nonfinite_gradient(self) -> Nonfinite:
        """Where the step's first gradient that is not finite came from: this rank computes its own part again."""
        gradients = ((name, tensor.grad) for name, tensor in self.parameters)
        name = next((name for name, grad in gradients if grad is not None and not is_finite(grad)), "all weights")
        random.set_step(self.step)
        layer = name.rpartition(".")[0]
        batches, weight = self._micro_batches
        losses = [partial(self.objective.loss, self.model, batch, weight) for batch in batches if batch.trained_tokens]
        found = first_nonfinite_gradient(self.model, losses)
        return found or Nonfinite(layer, "gradient", f"the gradient of {name}, and not when it was computed again")

    def _norm(self) -> float:
        if self.verifier is None or not self._verifying:
            return grad_norm(self.parameters)
        with self._agreed():
            return self.verifier.norm(self.step + 1, lambda: grad_norm(self.parameters), self._repeat)

    def _update(self, scale: float) -> None:
        with self._phase("optimizer"):
            if self.verifier is None or not self._verifying:
                self.optimizer.step(scale)
            else:
                with self._agreed():
                    self.verifier.update(self.step + 1, self.optimizer, scale, self._repeat)
                self.verifier.clean = self.step + 1
            self.optimizer.zero_grad()
            self.schedule.step()
            self.step += 1

    # ------------------------------------------------------------------ the state
    def save(self) -> Path:
        """Write a checkpoint of the run as it stands, and tell the callbacks; its path.

        Raises NumericsError, and writes nothing, where a weight is not finite.
        """
        found = first_nonfinite_weight(self.parameters)
        if found is not None:
            found.tell("update", self.step)
            raise NumericsError(
                f"Nothing is saved: {found} is not finite after step {self.step}; lower the learning rate. The last "
                "checkpoint is kept."
            )
        with span("checkpoint", step=self.step):
            path = self.checkpoint_directory / f"step-{self.step}"
            if self.communicator.rank == 0:
                keep, spared = self._kept()
                compression = self.config.checkpointing.compression
                checkpoint.save(self.state_dict(), self.fingerprint, path, keep, spared, compression)
            self.communicator.barrier()
        self.saved = self.step
        self._tell("on_checkpoint", path)
        return path

    def _kept(self) -> tuple[int, int | None]:
        """How many of the newest checkpoints are kept, and the step of the best one, which is kept beside them."""
        c = self.config.checkpointing
        found = best(self.reports) if c.keep_best else None
        return c.keep, None if found is None else found.step

    def take_best(self) -> StepReport | None:
        """Take the weights of the step with the lowest held-out loss, and nothing else of it; the report of that step.

        To be called when the run is over.

        None, and the weights stay, where no step was evaluated or there is no checkpoint of it. FormatError where it is
        damaged.
        """
        found = best(self.reports)
        if found is None or found.step == self.step:
            return found
        path = self.checkpoint_directory / f"step-{found.step}"
        if not path.is_dir():
            return None
        values = checkpoint.read(path, self.fingerprint)
        with checkpoint.fitting(path):
            weights = self.optimizer.results(values["weights"], values["optimizer"])
            for name, tensor in self.parameters:
                tensor.numpy()[...] = weights[name]
        return found

    def roll_back(self, step: int) -> Path | None:
        """Go back, when the step under way is over, to the newest checkpoint before step `step`; None without one.

        Weights, optimizer, schedule and random state become those of the checkpoint, to the bits of a resume; the data
        goes on after the examples that were seen, so that what led there is not met again. Newer checkpoints are
        removed.
        """
        self._back = checkpoint.before(self.checkpoint_directory, step)
        return self._back

    def _go_back(self, path: Path) -> None:
        self._back = None
        values = checkpoint.go_back(path, self.fingerprint, writes=self.communicator.rank == 0)
        self.communicator.barrier()
        with checkpoint.fitting(path):
            self.load_state_dict({**values, "loader": self.loader.state_dict()})
        self.optimizer.zero_grad()
        self.saved = self.step
        self._tell("on_rollback", path)

    def state_dict(self) -> dict[str, Any]:
        """All that a run continues from: plain values and NumPy arrays, which share memory with the weights."""
        return {
            "run": self.run_id,
            "date": self.date.isoformat(),
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "schedule_steps": self.config.schedule_steps,
            "loader": self.loader.state_dict(),
            "random": random.get_state(),
            "weights": {name: self.optimizer.trained(tensor) for name, tensor in self.parameters},
            "reports": state.plain(self.reports),
            "baseline": self.baseline,
        }

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Continue from what `state_dict()` gave; arrays are copied.

        FormatError where it is no such state or of other weights, ConfigError where it is of other settings or data.
        """
        with state.sound():
            state.check(values, self.parameters)
            reports, date = state.reports(values["reports"]), datetime.fromisoformat(values["date"])
            run_id, baseline = str(values["run"]), dict(values["baseline"])
            self.optimizer.load_state_dict(values["optimizer"])
            self.schedule.load_state_dict(values["schedule"])
            self.loader.load_state_dict(values["loader"])
            random.set_state(values["random"])
            for name, tensor in self.parameters:
                tensor.numpy()[...] = values["weights"][name]
        self.step, self.reports, self.baseline = values["step"], reports, baseline
        self.run_id, self.date = run_id, date
        self.earlier_steps = values["schedule_steps"]
        self._look_for_better()

    def _resume(self) -> None:
        """Continue from the newest checkpoint; ConfigError where it is beyond the steps of the configuration."""
        directory, values = checkpoint.load(self.checkpoint_directory, self.fingerprint)
        wanted = self.config.training.steps
        with checkpoint.fitting(directory):
            if wanted < values["step"]:
                raise ConfigError(
                    f"training.steps is {wanted}, and {directory} was written after step {values['step']}; resume with "
                    "at least as many, or start anew."
                )
            self.load_state_dict(values)
        self.saved = self.step
