"""The metrics of a run: what it emits besides the figures of its steps, and where [observe] has them go."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from entrenar._kernels import cpu, profile
from entrenar.autograd.tensor import memory_stats
from entrenar.observe import otlp_metrics, prometheus
from entrenar.observe.events import metric, subscribe, unsubscribe
from entrenar.observe.extras import needed
from entrenar.observe.metrics import Store
from entrenar.observe.resources import Resources, difference
from entrenar.train.callbacks import Callback
from entrenar.train.config import Observe
from entrenar.train.step import StepReport
from entrenar.train.trainer import Trainer

# What of a difference of two samples is which metric, with which labels.
RESOURCES: dict[str, tuple[str, dict[str, str]]] = {
    "resident_bytes": ("entrenar_resident_memory_bytes", {}),
    "minor_faults": ("entrenar_page_faults_total", {"type": "minor"}),
    "major_faults": ("entrenar_page_faults_total", {"type": "major"}),
    "voluntary_switches": ("entrenar_context_switches_total", {"type": "voluntary"}),
    "involuntary_switches": ("entrenar_context_switches_total", {"type": "involuntary"}),
    "cpu_frequency_hertz": ("entrenar_cpu_frequency_hertz", {}),
    "cgroup_throttled_seconds": ("entrenar_cpu_throttled_seconds_total", {}),
    "cgroup_throttled": ("entrenar_cpu_throttled_periods_total", {}),
    "steal_seconds": ("entrenar_cpu_steal_seconds_total", {}),
    "thermal_throttles": ("entrenar_thermal_throttles_total", {}),
    "temperature_celsius": ("entrenar_temperature_celsius", {}),
    "edac_corrected": ("entrenar_memory_errors_total", {"type": "corrected"}),
    "edac_uncorrected": ("entrenar_memory_errors_total", {"type": "uncorrected"}),
    "disk_free_bytes": ("entrenar_disk_free_bytes", {}),
} | {
    f"pressure_{resource}_{degree}_seconds": (
        "entrenar_pressure_seconds_total",
        {"resource": resource, "degree": degree},
    )
    for resource in ("cpu", "memory", "io")
    for degree in ("some", "full")
}
KERNEL = ("calls", "seconds", "flops", "operand_bytes")  # of a counter, in its order; entrenar_kernel_*_total


def info(trainer: Trainer) -> dict[str, str]:
    """The labels of entrenar_info."""
    try:
        installed = version("entrenar")
    except PackageNotFoundError:  # a checkout that is not installed
        installed = "unknown"
    shape, print_of = trainer.model.config, trainer.fingerprint
    return {
        "version": installed,
        "tier": cpu.tier(),
        "threads": str(cpu.get_num_threads()),
        "precision": cpu.effective_precision(cpu.get_matmul_precision()),
        "model": f"{shape.family} {shape.num_hidden_layers}x{shape.hidden_size} {str(print_of['the base model'])[:12]}",
        "data": str(print_of["the examples"])[:12],
        "run": trainer.run_id,
    }


class RunMetrics(Callback):
    """Has the metrics go where [observe] says while the run lasts, and emits those of machine, allocator and kernels.

    ConfigError where a library is missing; `say` gets a sentence for whatever fails later.
    """

    def __init__(self, wanted: Observe, directory: Path, say: Callable[[str], None]) -> None:
        self.wanted, self.directory, self.say = wanted, directory, say
        if wanted.metrics:
            needed("opentelemetry.sdk.metrics", "observe.metrics")
            otlp_metrics.exporter().shutdown()
        for key in ("metrics_port", "metrics_file"):
            if getattr(wanted, key) is not None:
                needed("prometheus_client", f"observe.{key}")
        self._kernels: dict[str, tuple[float, ...]] = {}

    def around_run(self, trainer: Trainer) -> AbstractContextManager[object]:
        """Exporters are there for as long as the run lasts; kernels are counted meanwhile."""
        return self._around(trainer)

    @contextmanager
    def _around(self, trainer: Trainer) -> Iterator[None]:
        if trainer.communicator.rank:
            yield
            return
        store, wanted, counted = Store(), self.wanted, profile.enabled()
        with ExitStack() as stack:
            if wanted.metrics:
                attributes = {f"entrenar.{key}": value for key, value in info(trainer).items()}
                stack.enter_context(otlp_metrics.exporting(attributes, self.say))
            if wanted.metrics_port is not None:
                stack.enter_context(prometheus.serving(store, wanted.metrics_port, self.say))
            if wanted.metrics_file is not None:
                stack.enter_context(prometheus.writing(store, Path(wanted.metrics_file), self.say))
            subscribe(store)
            stack.callback(unsubscribe, store)
            profile.enable()
            if not counted:
                stack.callback(profile.disable)
            yield

    def on_run_start(self, trainer: Trainer) -> None:
        """Say what runs, and take the first sample."""
        metric("entrenar_info", 1.0, **info(trainer))
        metric("entrenar_planned_steps", float(trainer.config.training.steps))
        self._resources = Resources(self.directory)
        self._sample = self._resources.sample()
        self._kernels = dict(profile.counters())

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """Emit what the machine and the kernels did since the step before."""
        after = self._resources.sample()
        for name, value in difference(self._sample, after).items():
            if name in RESOURCES:
                metric(RESOURCES[name][0], value, **RESOURCES[name][1])
        self._sample = after
        for state, size in memory_stats().items():
            metric("entrenar_allocator_bytes", size, state=state)
        self._emit_kernels()

    def _emit_kernels(self) -> None:
        now: dict[str, tuple[float, ...]] = dict(profile.counters())
        for kernel, counts in now.items():
            before = self._kernels.get(kernel, (0.0,) * len(KERNEL))
            if counts[0] < before[0]:  # somebody has reset the counters
                before = (0.0,) * len(KERNEL)
            for figure, value, old in zip(KERNEL, counts, before, strict=False):
                metric(f"entrenar_kernel_{figure}_total", max(0.0, value - old), kernel=kernel)
        self._kernels = now
