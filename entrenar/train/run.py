"""What every run does around its trainer: summary first, held-out loss and a sample before and after, files."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from entrenar._kernels import cpu
from entrenar.autograd.precision import auto_precision, matmul_precision
from entrenar.data import Batch, DataLoader, Mix, MixedLoader, Sample, evaluation_batches
from entrenar.errors import EntrenarError, FormatError, safe
from entrenar.io.rendering import rendering_date
from entrenar.observe.hardware import available_memory
from entrenar.train import checkpoint, folder, interrupt, report
from entrenar.train.best import best
from entrenar.train.callbacks import Callback, Display, Record
from entrenar.train.config import FALLING, TrainConfig
from entrenar.train.evaluate import Evaluation
from entrenar.train.memory import MemoryEstimate
from entrenar.train.observers import observers
from entrenar.train.step import StepReport
from entrenar.train.trainer import Trainer


@dataclass(frozen=True)
class Result:
    """What a run leaves: evaluations and a sample before and after, where the output is, a report for each step.

    The evaluations are None where nothing was held out.
    """

    before: Evaluation | None
    after: Evaluation | None
    sample_before: str
    sample_after: str
    output: Path
    metrics: Path
    reports: list[StepReport]


@contextmanager
def prepared(config: TrainConfig, console: Console | None = None) -> Iterator[TrainConfig]:
    """Threads, precision, signals and date as the run wants them inside the block, its output folder its own.

    Gives the configuration, which begins anew where it resumes a run that was killed before its first checkpoint, as
    `console` is told. ConfigError before the block where the output cannot be written, is another run's, or would be
    lost.
    """
    folder.check(config)
    c = config.checkpointing
    checkpoint.check_compression(c.compression)
    directory, anew = Path(c.directory), c.resume and folder.killed_at_once(Path(c.directory))
    if anew:
        config = replace(config, checkpointing=replace(c, resume=False, overwrite=True))
    date = checkpoint.date_of(directory / "checkpoint") if c.resume and not anew else datetime.now()
    wanted, threads = config.training.precision, cpu.get_num_threads()
    if config.training.threads:
        cpu.set_num_threads(config.training.threads)
    try:
        with (
            interrupt.heeded(),
            folder.locked(directory, resume=c.resume, anew=anew),
            rendering_date(date),
            matmul_precision(auto_precision() if wanted == "auto" else wanted),
        ):
            if anew and console is not None:
                report.remarks(console, [f"{directory}: the run was killed before a checkpoint, and begins anew."])
            yield config
    finally:
        cpu.set_num_threads(threads)


def batches(
    config: TrainConfig,
    samples: Sequence[Sample],
    held_out: Sequence[Sample],
    pad_id: int | None,
    mix: Mix | None = None,
) -> tuple[DataLoader, Sequence[Batch]]:
    """The loader of the training samples, drawn by `mix` where there is one, and the batches of the held-out ones."""
    t, packing, pad = config.training, config.data.packing, pad_id or 0
    options: dict[str, Any] = {"seed": t.seed, "packing": packing, "pad_id": pad}
    if mix is None:
        loader = DataLoader(samples, t.batch_size, t.sequence_length, **options)
    else:
        loader = MixedLoader(samples, mix, t.batch_size, t.sequence_length, **options)
    return loader, evaluation_batches(held_out, t.batch_size, t.sequence_length, packing, pad)


def callbacks(config: TrainConfig, record: Record, console: Console) -> list[Callback]:
    """What hears a run that a person started."""
    return [record, Display(console), *observers(config, record.directory, console)]


def summary_rows(trainer: Trainer, trainable: str, needed: MemoryEstimate) -> dict[str, str]:
    """What is known before the first step."""
    t, loader, held_out = trainer.config.training, trainer.loader, trainer.held_out
    return {
        "threads": str(cpu.get_num_threads()),
        "SIMD tier": cpu.tier(),
        "matmul precision": cpu.effective_precision(cpu.get_matmul_precision()),
        "trainable parameters": trainable,
        "estimated peak memory": f"{report.gib(needed.total)} of {report.gib(available_memory())} available",
        "data": f"{len(loader.samples):,} samples, {100 * loader.trained_fraction:.0f} % of the tokens trained, "
        f"{loader.truncated} truncated",
        "tokens trained": f"{loader.trained_tokens:,} of {loader.tokens:,} an epoch",
        "held out": f"{sum(batch.trained_tokens for batch in held_out):,} tokens in "
        f"{sum(len(batch.tokens) for batch in held_out)} rows"
        if held_out
        else "nothing",
        **({} if trainer.verifier is None else {"verified": trainer.verifier.cost(_step_tokens(trainer))}),
        "steps": f"{t.steps} of {t.batch_size * t.gradient_accumulation} x {t.sequence_length} tokens",
    }


def _step_tokens(trainer: Trainer) -> int:
    t = trainer.config.training
    return t.batch_size * t.gradient_accumulation * t.sequence_length


def execute(
    trainer: Trainer,
    *,
    output: Path,
    save: Callable[[Path], None],
    prompt: str,
    sample: Callable[[], str],
    record: Record,
    console: Console,
) -> Result:
    """Evaluate, train, evaluate, write `output` (by `save`) and what `record` writes, and show what changed.

    `record` is one of the trainer's callbacks.
    """
    writes = trainer.communicator.rank == 0
    if trainer.saved:
        folder.check_run(record.directory, trainer.run_id)
    written = False
    try:
        record.before, sample_before = _before(trainer, sample, console)
        record.summary.samples = {"prompt": prompt, "before": sample_before}
        record.summary.remarks += _other_rates(trainer, console)
        if writes and not trainer.saved:
            folder.begin(record.directory, trainer.fingerprint)
            if trainer.config.checkpointing.overwrite:
                folder.clear(record.directory)
        every = trainer.config.training.sample_every
        if every and writes:  # before the checkpoint of a step, which has its sample
            trainer.callbacks = [Samples(every, sample, console), *trainer.callbacks]
        failed = _train(trainer)
        ending = _ending(trainer)
        record.summary.remarks += ending
        report.remarks(console, ending)
        with interrupt.deferred(), checkpoint.writing(output):  # before what may still fail or be interrupted
            if writes:
                save(output)
            record.write(trainer)
            written = True
        if failed is not None:
            raise FormatError(f"{output} is written, and no checkpoint of the last step: {failed}") from failed
        after = _evaluated(trainer, console)
        sample_after = record.summary.samples["after"] = sample()
    except KeyboardInterrupt as stop:
        stands = f"{output} is written; the evaluation after training is missing." if written else _stands(trainer)
        raise interrupt.Interrupted(stands, getattr(stop, "number", signal.SIGINT)) from None
    record.write(trainer, after)
    for callback in trainer.callbacks:
        callback.on_result(trainer, after)
    report.comparison(console, record.before, after, of_tokens=trainer.objective.of_tokens)
    for title, text in (("Prompt", prompt), ("Before", sample_before), ("After", sample_after)):
        console.print(f"[bold]{title}:[/bold] {escape(safe(text).strip())}")
    console.print(f"[bold]Written:[/bold] {escape(str(output))} and {escape(str(record.metrics))}", soft_wrap=True)
    return Result(record.before, after, sample_before, sample_after, output, record.metrics, trainer.reports)


def _train(trainer: Trainer) -> FormatError | None:
    """Train; what kept the last checkpoint from being written, which must not cost the result.

    Where nobody can see it any more, the run ends with a checkpoint.
    """
    try:
        trainer.run()
    except FormatError as error:
        if not trainer.finished:
            raise FormatError(f"{str(error).rstrip('.')}: {_stands(trainer)}") from error
        return error
    except OSError as error:  # what is written to files has its own sentences: this is standard output
        if isinstance(error, EntrenarError):
            raise
        if trainer.step > trainer.saved:
            trainer.save()
        raise EntrenarError(f"{report.lost(error)}: {_stands(trainer)}") from None
    return None


class Samples(Callback):
    """Shows, and keeps in the checkpoints, what the model answers every `every` steps."""

    def __init__(self, every: int, sample: Callable[[], str], console: Console) -> None:
        self.every, self.sample, self.console = every, sample, console

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """Sample where it is due; dropout is off meanwhile."""
        if report.step % self.every:
            return
        with trainer.model.evaluating(), trainer.optimizer.evaluating():
            text = self.sample()
        trainer.baseline["samples"] = {**trainer.baseline.get("samples", {}), str(report.step): text}
        self.console.print(f"[bold]Step {report.step}:[/bold] {escape(safe(text).strip())}")


def _ending(trainer: Trainer) -> list[str]:
    """Why training has ended before its last step, and of which step the weights are from here on, as sentences."""
    t, said = trainer.config.training, []
    if trainer.exhausted and trainer.step < t.steps:
        said.append(
            f"Training stopped early, after step {trainer.step} of {t.steps}: the held-out loss became "
            + (f"lower by no more than {t.early_stopping_threshold:g}" if t.early_stopping_threshold else "no lower")
            + f" in {t.early_stopping_patience} evaluations."
        )
    if trainer.config.checkpointing.keep_best:
        lowest, taken = best(trainer.reports), trainer.take_best()
        if taken is not None and taken.held_out is not None:
            said.append(
                f"The result is of step {taken.step}, whose held-out loss of {taken.held_out.loss:.4f} is lowest."
            )
        elif lowest is not None:
            said.append(
                f"The result is of the last step: there is no checkpoint of step {lowest.step}, whose held-out loss "
                "is the lowest."
            )
    return said


def _evaluated(trainer: Trainer, console: Console) -> Evaluation | None:
    """The held-out loss as it is now; None where nothing is held out."""
    if not trainer.held_out:
        return None
    return trainer.objective.evaluate(trainer.model, report.track(console, trainer.held_out, "held-out set"))


def _before(trainer: Trainer, sample: Callable[[], str], console: Console) -> tuple[Evaluation | None, str]:
    """Held-out loss and sample of the untrained model; a resumed run has them in its checkpoint."""
    if not trainer.baseline:
        checkpoint.tidy(trainer.checkpoint_directory)
        held_out = _evaluated(trainer, console)
        values = {"loss": held_out.loss, "tokens": held_out.tokens} if held_out else {}
        trainer.baseline = {**values, "sample": sample()}
    try:
        baseline = trainer.baseline
        before = Evaluation(float(baseline["loss"]), int(baseline["tokens"])) if trainer.held_out else None
        answer = str(baseline["sample"])
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{trainer.checkpoint_directory}: has no held-out loss of before ({error!r}).") from error
    if before is not None:
        beside = f" (perplexity {before.perplexity:.3f})" if trainer.objective.of_tokens else ""
        console.print(f"held-out loss before: {before.loss:.4f}{beside}")
    if trainer.step:
        console.print(f"resumed after step {trainer.step}")
    return before, answer


def _other_rates(trainer: Trainer, console: Console) -> list[str]:
    """What is said where the steps before a resume had other learning rates than a run of this many steps has."""
    if all(trainer.schedule.rate_at(step.step - 1) == step.learning_rate for step in trainer.reports):
        return []
    schedule, steps = trainer.config.lr_schedule.name, trainer.config.schedule_steps
    said = [
        f"The learning rates of {schedule} follow from the number of steps, which was another than {steps} up to step "
        f"{trainer.step}: the result is not that of {steps} steps from the beginning, and the rate goes from "
        f"{trainer.reports[-1].learning_rate:.3g} to {trainer.optimizer.lr:.3g} here. {_kept_curve(trainer)}"
    ]
    report.remarks(console, said)
    return said


def _kept_curve(trainer: Trainer) -> str:
    """How the learning rates of before a resume are kept, where they train anything to the new end."""
    s, before = trainer.config.lr_schedule, trainer.earlier_steps
    if before is None or before >= trainer.config.training.steps or s.min_lr or s.name not in FALLING:
        return f"lr_schedule.schedule_steps{f' = {before}' if before else ''} keeps the curve of before."
    further = "; training.continue_adapter, in another directory, trains its result on with a curve of its own"
    return (
        f"The curve of before ends at a rate of 0 after step {before}: training.steps = {before} keeps it"
        f"{further if trainer.config.adapter is not None else ''}."
    )


def _stands(trainer: Trainer) -> str:
    """The sentence for a run that was stopped."""
    steps = f"stopped after step {trainer.step} of {trainer.config.training.steps}"
    if not trainer.saved:
        return f"{steps}; nothing was written."
    where = trainer.checkpoint_directory
    return f"{steps}; {where}/step-{trainer.saved} is written, and the same command with --resume continues from there."
