"""The traces of a run: what its spans say besides themselves, and where [observe] has them go."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from entrenar._kernels import cpu
from entrenar.errors import ConfigError
from entrenar.observe import otlp, otlp_sdk
from entrenar.observe.chrome import ChromeTrace
from entrenar.observe.events import annotate, subscribe, unsubscribe
from entrenar.observe.extras import needed
from entrenar.observe.otlp_file import JsonLines
from entrenar.observe.stream import check
from entrenar.train.callbacks import Callback
from entrenar.train.config import Observe
from entrenar.train.observe_metrics import info
from entrenar.train.step import StepReport
from entrenar.train.trainer import Trainer


class Traces(Callback):
    """Has the spans of a run go where [observe] says while it lasts, with what a person would search them by.

    ConfigError where a library is missing, a variable wrong or a file cannot be opened; `say` gets a sentence for
    whatever fails later.
    """

    def __init__(self, wanted: Observe, say: Callable[[str], None]) -> None:
        self.wanted, self.say = wanted, say
        for option in ("trace_file", "trace_chrome"):
            path = getattr(wanted, option)
            if path is not None:
                check(Path(path), f"observe.{option}")
        if wanted.trace or wanted.trace_file is not None:
            option = "observe.trace" if wanted.trace else "observe.trace_file"
            export = needed("opentelemetry.sdk.trace.export", option)
            try:
                otlp.batching(export.ConsoleSpanExporter()).shutdown()
            except ValueError as error:
                raise ConfigError(f"{option}: the OTEL_BSP_* variables contradict each other: {error}") from error
        if wanted.trace:
            otlp_sdk.exporter("traces", "observe.trace").shutdown()
        import psutil

        self._process = psutil.Process()
        self._spans: otlp.Spans | None = None

    def around_run(self, trainer: Trainer) -> AbstractContextManager[object]:
        """Exporters and files are there for as long as the run lasts."""
        return self._around(trainer)

    @contextmanager
    def _around(self, trainer: Trainer) -> Iterator[None]:
        wanted, rank, resumed = self.wanted, trainer.communicator.rank, trainer.saved > 0
        exporters = []
        with ExitStack() as stack:
            if wanted.trace:
                exporters.append(otlp.Counted(otlp_sdk.exporter("traces", "observe.trace"), "the receiver"))
            if wanted.trace_file is not None:
                path = of_rank(Path(wanted.trace_file), rank)
                exporters.append(otlp.Counted(JsonLines(path, self.say, resumed), str(path), "observe.trace_file"))
            if exporters:
                attributes = {f"entrenar.{key}": value for key, value in info(trainer).items()}
                stack.callback(self._say_where)
                self._spans = stack.enter_context(otlp.tracing(exporters, attributes, self.say))
            if wanted.trace_chrome is not None:
                path = of_rank(Path(wanted.trace_chrome), rank)
                trace = stack.enter_context(ChromeTrace(path, self.say, resumed))
                subscribe(trace)
                stack.callback(unsubscribe, trace)
            yield

    def _say_where(self) -> None:
        if self.wanted.trace and self._spans is not None and self._spans.trace_id is not None:
            self.say(f"trace {self._spans.trace_id}, {self._spans.ended} spans")

    def on_run_start(self, trainer: Trainer) -> None:
        """Say what runs."""
        facts, t, adapter = info(trainer), trainer.config.training, trainer.config.adapter
        annotate(
            model=facts["model"],
            method="full" if adapter is None else adapter.section,
            seed=t.seed,
            tier=facts["tier"],
            threads=cpu.get_num_threads(),
            precision=facts["precision"],
            rank=trainer.communicator.rank,
            ranks=trainer.communicator.size,
            steps=t.steps,
            data=facts["data"],
            version=facts["version"],
            pid=os.getpid(),
        )

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """Say how fast the step was, and what memory the process has."""
        rate = report.tokens / report.seconds if report.seconds else 0.0
        annotate(seconds=report.seconds, tokens_per_second=rate, rss_bytes=self._process.memory_info().rss)


def of_rank(path: Path, rank: int) -> Path:
    """The file of a rank: that of rank 0 is `path`."""
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}") if rank else path
