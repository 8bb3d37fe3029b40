"""The loggers that [observe] names, fed with each step; metrics.csv and metrics.jsonl are there anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from entrenar.observe.loggers import Feed
from entrenar.train.callbacks import Callback
from entrenar.train.config import TrainConfig
from entrenar.train.step import StepReport
from entrenar.train.trainer import Trainer


class Loggers(Callback):
    """Feeds the loggers `names`; ConfigError where a library is missing, a sentence to `say` for what fails later."""

    def __init__(self, names: Sequence[str], directory: Path, say: Callable[[str], None]) -> None:
        self.directory, self.feeds = directory, [Feed(name, say) for name in names]

    def around_run(self, trainer: Trainer) -> AbstractContextManager[object]:
        """The loggers run for as long as the run lasts."""
        return self._around(trainer)

    @contextmanager
    def _around(self, trainer: Trainer) -> Iterator[None]:
        with ExitStack() as stack:
            if not trainer.communicator.rank:
                for feed in self.feeds:
                    stack.enter_context(feed.running(self.directory, trainer.run_id, settings(trainer.config)))
            yield

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """Log the step; its held-out loss too, where it was evaluated."""
        report = trainer.reports[-1]
        values = {
            "loss": report.loss,
            "learning_rate": report.learning_rate,
            "gradient_norm": report.grad_norm,
            "tokens": float(report.tokens),
            "tokens_per_second": report.tokens / report.seconds,
            "seconds": report.seconds,
            **{f"phase_seconds/{phase}": seconds for phase, seconds in report.phases.items()},
        }
        if report.held_out is not None:
            values["held_out_loss"] = report.held_out.loss
        for feed in self.feeds:
            feed.log(report.step, values)


def settings(config: TrainConfig) -> dict[str, Any]:
    """The configuration, flat: `training.steps` and so on; values that are no plain ones as text."""
    sections = [(name, getattr(config, name)) for name in ("training", "lr_schedule", "data")]
    if config.adapter is not None:
        sections.append((config.adapter.section, config.adapter))
    return {
        f"{name}.{key}": value if isinstance(value, (bool, int, float, str)) else str(value)
        for name, section in sections
        for key, value in asdict(section).items()
    }
