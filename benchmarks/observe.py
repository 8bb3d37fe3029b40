"""What observing a run costs: a QLoRA step of the default model with observers on against the same step with none.

Both sides are one trainer in one process, turn and turn about, so that memory lies where it lay. What everything off
costs is counted: the events of a step that nobody hears, and the branches of its kernels, by the time of one of each.
What spans cost is measured once more, where a machine's noise does not hide it: as CPU time of the thread that makes
them, in a model of as many layers that are too narrow to take time themselves.
"""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from harness import Bench, Row, Target, milliseconds
from models import ALL_LINEARS, ALPHA, RANK
from timing import clock, timed

PEERS: tuple[str, ...] = ()
LENGTH, LAYERS, WARM_UP = 512, 30, 2  # tokens and layers: the default example's
TURNS = 3  # as many repetitions as other entries have: the effect is smaller than a step's noise
MANY = 10_000  # silent events in one measurement
BRANCH = 2e-9  # seconds of a kernel's two branches that are not taken: a generous bound, below what can be timed
CASES: dict[str, dict[str, Any]] = {  # options of [observe]
    "--profile": {"profile": True},
    "--monitor": {"monitor": True},
    "--metrics-port": {"metrics_port": 0},
    "--trace": {"trace": True},
    "--trace-file": {"trace_file": "trace.jsonl"},
    "--trace-chrome": {"trace_chrome": "trace.json"},
    "--trace-layers": {"trace_chrome": "trace.json", "trace_layers": True},
    "--trace-ops": {"trace_chrome": "trace.json", "trace_ops": True},
}
SPANS = ("--trace-chrome", "--trace-layers", "--trace-ops")  # whose CPU time is measured
TOGETHER = [name for name in CASES if name != "--trace-ops"]  # that one is for a few steps: a span a kernel or so
EVERYTHING = {name: value for case in TOGETHER for name, value in CASES[case].items()}

SINK = """
import os, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *words):
        pass
server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()  # until whoever started this is gone
os._exit(0)
"""


def receiver() -> subprocess.Popen[str]:
    """A receiver of OTLP that the environment of this process names, and that ends with it."""
    found = subprocess.Popen([sys.executable, "-c", SINK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert found.stdout is not None
    os.environ["OTEL_EXPORTER_OTLP_PROTOCOL"] = "http/protobuf"
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{int(found.stdout.readline())}"
    return found


class Run:
    """A trainer of the default model on random tokens, a step at a time."""

    clock = staticmethod(clock)

    def __init__(self) -> None:
        from entrenar.io.hub import fetch_default_model
        from entrenar.llama import LLaMAModel

        self.begin(LLaMAModel.from_pretrained(fetch_default_model(progress=False)))

    def begin(self, model: Any) -> None:
        """Train `model` for some steps."""
        import numpy as np

        from entrenar.data import DataLoader, Sample
        from entrenar.lora import LoRAConfig
        from entrenar.train import TrainConfig, Trainer
        from entrenar.train.config import Checkpointing, Training

        self.folder = tempfile.TemporaryDirectory()
        self.sink = receiver()
        adapter = LoRAConfig(rank=RANK, alpha=ALPHA, target_modules=ALL_LINEARS)
        adapter.apply(model, 0)
        rng = np.random.default_rng(0)
        rows = [rng.integers(0, model.config.vocab_size, LENGTH).astype(np.int32) for _ in range(64)]
        loader = DataLoader([Sample(row, np.ones(LENGTH, bool)) for row in rows], 1, LENGTH, seed=0)
        config = TrainConfig(
            training=Training(steps=10**6, sequence_length=LENGTH, learning_rate=1e-4),
            checkpointing=Checkpointing(self.folder.name, minutes=0),
            adapter=adapter,
        )
        self.trainer = Trainer(model, config, loader)
        self.plain = list(self.trainer.callbacks)
        for _ in range(WARM_UP):
            self.step({})

    def step(self, options: dict[str, Any]) -> float:
        """Seconds of one step under observers of these options, which begin before it and end after it, untimed."""
        from rich.console import Console

        from entrenar.autograd.precision import auto_precision, matmul_precision
        from entrenar.observe.events import span
        from entrenar.train.config import Observe
        from entrenar.train.observers import observers

        trainer, folder = self.trainer, Path(self.folder.name)
        placed = {name: str(folder / value) if isinstance(value, str) else value for name, value in options.items()}
        trainer.config.observe = Observe(**placed)
        found = observers(trainer.config, folder, Console(file=io.StringIO()))
        trainer.callbacks = [*self.plain, *found]
        with matmul_precision(auto_precision()), ExitStack() as around:
            for callback in found:
                around.enter_context(callback.around_run(trainer))
            with span("entrenar.run"):
                for callback in found:
                    callback.on_run_start(trainer)
                started = self.clock()
                trainer._heard_step()
                seconds = self.clock() - started
                for callback in found:
                    callback.on_run_end(trainer)
        return seconds

    def off(self) -> dict[str, float]:
        """Seconds that a step spends on events which nobody hears, and on its kernels' branches."""
        from entrenar._kernels import profile
        from entrenar.observe.events import Metric, Span, Subscriber, metric, span, subscribe, unsubscribe

        class Count(Subscriber):
            spans = metrics = 0

            def on_span_end(self, span: Span) -> None:
                self.spans += 1

            def on_metric(self, metric: Metric) -> None:
                self.metrics += 1

        def spans() -> None:
            for _ in range(MANY):
                with span("forward"):
                    pass

        def metrics() -> None:
            for _ in range(MANY):
                metric("entrenar_loss", 1.0, step=1)

        count = Count()
        profile.reset()
        profile.enable()
        subscribe(count)
        try:
            self.step({})
        finally:
            unsubscribe(count)
            profile.disable()
        kernels = sum(calls for calls, *_ in profile.counters().values())
        events = (count.spans * timed(spans) + count.metrics * timed(metrics)) / MANY
        return {
            "spans": count.spans,
            "metrics": count.metrics,
            "kernels": kernels,
            "seconds": events + kernels * BRANCH,
        }


class Narrow(Run):
    """A model with the default's layers, each so narrow that a step is the interpreter's; CPU time of its thread."""

    clock = staticmethod(time.thread_time)

    def __init__(self) -> None:
        from entrenar.llama import LLaMAConfig, LLaMAModel

        shape = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS}
        self.begin(LLaMAModel(LLaMAConfig(**shape, num_attention_heads=4, max_position_embeddings=LENGTH)))


def spans(bench: Bench, seconds: float) -> None:
    """The CPU time of spans, as a share of a step of the default model that takes `seconds`."""
    with bench.worker("observe", "Narrow") as worker:
        sides = {"off": {}} | {name: CASES[name] for name in SPANS}
        turns = {name: partial(worker.call, "step", options=options) for name, options in sides.items()}
        times = bench.interleave(turns, repetitions=2 * TURNS * bench.repetitions)
    for name in SPANS:
        more = [on - off for on, off in zip(times.seconds[name], times.seconds["off"], strict=True)]
        cost = [100 * each / seconds for each in more]
        row = Row("observe", f"{name}, CPU time of its spans", cost, "%", Target(2, at_most=True, tiers=None))
        row.detail = f"{1e3 * statistics.median(more):.2f} ms in a step of {1e3 * seconds:.3g} ms"
        bench.add(row)


def run(bench: Bench) -> None:
    """Everything off by count; each kind of observer, and all together, by interleaved steps; spans by CPU time."""
    with bench.worker("observe", "Run") as worker:
        sides = {"off": {}, "everything": EVERYTHING} | ({} if bench.quick else CASES)
        turns = {name: partial(worker.call, "step", options=options) for name, options in sides.items()}
        times = bench.interleave(turns, repetitions=TURNS * bench.repetitions)
        found = worker.call("off")
        share = [100 * found["seconds"] / seconds for seconds in times.seconds["off"]]
        row = Row("observe", "everything off, share of a step", share, "%", Target(0.5, at_most=True, tiers=None))
        row.detail = f"{found['spans']:.0f} spans, {found['metrics']:.0f} metrics, {found['kernels']:.0f} kernels"
        bench.add(row)
        for name in sides:
            if name != "off":
                cost = [100 * (ratio - 1) for ratio in times.ratios("off", name)]
                target = Target(2, at_most=True, tiers=None) if name == "everything" else None
                label = f"{' '.join(TOGETHER)}, cost" if name == "everything" else f"{name}, cost"
                row = Row("observe", label, cost, "%", target)
                row.detail = milliseconds(times, ["off", name])
                bench.add(row)
    spans(bench, min(times.seconds["off"]))
