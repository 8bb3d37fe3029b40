"""What [observe] asks for, as callbacks of a run; each kind of observer adds itself where its options are set."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from entrenar.train.callbacks import Callback
from entrenar.train.config import TrainConfig
from entrenar.train.observe_curve import LossCurve
from entrenar.train.observe_layers import LayerSpans
from entrenar.train.observe_loggers import Loggers
from entrenar.train.observe_metrics import RunMetrics
from entrenar.train.observe_monitor import Monitor
from entrenar.train.observe_profile import Profiler
from entrenar.train.observe_traces import Traces
from entrenar.train.report import remarks


def observers(config: TrainConfig, directory: Path, console: Console) -> list[Callback]:
    """The callbacks that [observe] of `config` asks for.

    `directory` is the run's; lines for a person go to `console`.
    """
    wanted = config.observe
    found: list[Callback] = []
    if wanted.trace or wanted.trace_file is not None or wanted.trace_chrome is not None:
        found.append(Traces(wanted, lambda sentence: remarks(console, [sentence])))
    if wanted.trace_layers or wanted.trace_ops:
        found.append(LayerSpans(wanted.trace_layers, wanted.trace_ops))
    if wanted.metrics or wanted.metrics_port is not None or wanted.metrics_file is not None:
        found.append(RunMetrics(wanted, directory, lambda sentence: remarks(console, [sentence])))
    if wanted.loggers:
        found.append(Loggers(wanted.loggers, directory, lambda sentence: remarks(console, [sentence])))
    if wanted.profile or wanted.profile_out is not None or wanted.profile_every:
        found.append(Profiler(wanted, directory, console))
    if wanted.loss_curve:
        found.append(LossCurve(directory, lambda sentence: remarks(console, [sentence])))
    if wanted.monitor:
        found.append(Monitor(directory, console, wanted.on_spike))
    return found
