"""Loggers: the programs in which people compare their runs, each behind the same three calls and an extra of its name.

None needs a network: MLflow and Weights & Biases write into the run's folder unless MLFLOW_TRACKING_URI or WANDB_MODE
say otherwise, TensorBoard writes there always, trackio into its own database (TRACKIO_DIR).
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from entrenar.observe.extras import needed

PROJECT = "entrenar"
WAITING = 10000  # steps that a logger may be behind; further ones are left out and counted
LAST_SECONDS = 30.0  # for what waits at the end of a run


class Logger:
    """Takes the figures of a run; called from one thread. What a method raises costs this logger, never the run."""

    module = ""  # what is imported

    def start(self, directory: Path, run: str, settings: Mapping[str, Any]) -> None:
        """Begin the run `run`, whose folder is `directory`."""
        raise NotImplementedError

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of a step."""
        raise NotImplementedError

    def finish(self) -> None:
        """The run is over."""


class TensorBoard(Logger):
    """Event files below tensorboard/, one folder a run: `tensorboard --logdir DIRECTORY/tensorboard`."""

    module = "tensorboard.summary.writer.event_file_writer"

    def start(self, directory: Path, run: str, settings: Mapping[str, Any]) -> None:
        event = needed("tensorboard.compat.proto.event_pb2", "observe.loggers", "tensorboard")
        summary = needed("tensorboard.compat.proto.summary_pb2", "observe.loggers", "tensorboard")
        self._event, self._summary = event.Event, summary.Summary
        writer = needed(self.module, "observe.loggers", "tensorboard")
        self._writer = writer.EventFileWriter(str(directory / "tensorboard" / run))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(self._event(step=step, wall_time=time.time(), summary=self._summary(value=scalars)))

    def finish(self) -> None:
        self._writer.close()


class MLflow(Logger):
    """A run of the experiment `entrenar`, at MLFLOW_TRACKING_URI or else below mlflow/."""

    module = "mlflow"

    def start(self, directory: Path, run: str, settings: Mapping[str, Any]) -> None:
        mlflow = needed("mlflow", "observe.loggers", "mlflow")
        self._entities = needed("mlflow.entities", "observe.loggers", "mlflow")
        where = os.environ.get("MLFLOW_TRACKING_URI")
        if where is None:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            where = (directory.resolve() / "mlflow").as_uri()
        self._client = mlflow.MlflowClient(tracking_uri=where)
        experiment = self._client.get_experiment_by_name(PROJECT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(PROJECT)
        self._run = self._client.create_run(number, run_name=run).info.run_id
        for name, value in settings.items():
            self._client.log_param(self._run, name, value)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now, kind = int(time.time() * 1000), self._entities.Metric
        self._client.log_batch(self._run, [kind(name, float(value), now, step) for name, value in values.items()])

    def finish(self) -> None:
        self._client.set_terminated(self._run)


class WandB(Logger):
    """A run of the project `entrenar`, offline below wandb/ unless WANDB_MODE says online (`wandb sync` uploads it)."""

    module = "wandb"

    def start(self, directory: Path, run: str, settings: Mapping[str, Any]) -> None:
        wandb = needed("wandb", "observe.loggers", "wandb")
        self._run = wandb.init(
            project=PROJECT,
            id=run,
            dir=str(directory),
            config=dict(settings),
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow" if os.environ.get("WANDB_MODE") == "online" else None,
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        self._run.finish()


class Trackio(Logger):
    """A run of the project `entrenar` in trackio's database: `trackio show --project entrenar`."""

    module = "trackio"

    def start(self, directory: Path, run: str, settings: Mapping[str, Any]) -> None:
        trackio = needed("trackio", "observe.loggers", "trackio")
        self._run = trackio.init(
            PROJECT,
            name=run,
            config=dict(settings),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def finish(self) -> None:
        self._run.finish()


LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB, "trackio": Trackio}


class Feed:
    """Gives a logger its figures from a thread of its own, so that a slow one holds nobody up.

    `say` gets one sentence where the logger raises, which ends it.
    """

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self.name, self.say, self.left_out = name, say, 0
        needed(LOGGERS[name].module, f"observe.loggers: {name}", name)
        self._waiting: queue.Queue[tuple[int, Mapping[str, float]] | None] = queue.Queue(WAITING)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Have the figures logged; they are left out where the logger is too far behind."""
        try:
            self._waiting.put_nowait((step, values))
        except queue.Full:
            self.left_out += 1

    @contextmanager
    def running(self, directory: Path, run: str, settings: Mapping[str, Any]) -> Iterator[None]:
        """The logger runs inside the block; at its end it has LAST_SECONDS for what waits."""
        work = threading.Thread(
            target=self._work, args=(directory, run, settings), name=f"entrenar {self.name}", daemon=True
        )
        work.start()
        try:
            yield
        finally:
            until = time.monotonic() + LAST_SECONDS
            while work.is_alive() and time.monotonic() < until:
                try:
                    self._waiting.put(None, timeout=0.1)
                    break
                except queue.Full:
                    continue
            work.join(max(0.0, until - time.monotonic()))
            if work.is_alive():
                self.say(f"observe.loggers: {self.name} is not done after {LAST_SECONDS:g} s, and is left.")
            elif self.left_out:
                self.say(f"observe.loggers: {self.name} was too slow for {self.left_out} steps, which it lacks.")

    def _work(self, directory: Path, run: str, settings: Mapping[str, Any]) -> None:
        figures: tuple[int, Mapping[str, float]] | None = (0, {})  # None: the run is over
        try:
            logger = LOGGERS[self.name]()
            logger.start(directory, run, settings)
            while (figures := self._waiting.get()) is not None:
                logger.log(*figures)
            logger.finish()
        except BaseException as error:  # a library's own exit too: the run goes on
            self.say(f"observe.loggers: {self.name} raised {type(error).__name__}: {error}; the run goes on without.")
            while figures is not None:
                figures = self._waiting.get()
