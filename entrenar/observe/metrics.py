"""The one table of metrics: what exporters, dashboard, alert rules and documentation know of them.

Names and units are Prometheus' (base units; `_total` at the end of a counter, its unit before that); `otel` is the
name that OpenTelemetry has: that of its semantic conventions where they have the metric, else what its mapping to
Prometheus turns into `name` (Prometheus and OpenMetrics Compatibility).
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from entrenar.observe.events import Metric, Subscriber

GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"
# Upper bounds in seconds: a step takes milliseconds on a toy and minutes on a model of seven billion weights.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
UNITS = {
    "s": "seconds",
    "By": "bytes",
    "Hz": "hertz",
    "Cel": "celsius",
}  # UCUM's code, as OpenTelemetry writes units -> in a name


@dataclass(frozen=True)
class Row:
    """A metric. `unit` is UCUM's code ("1": none); an event adds to a counter, replaces a gauge, falls into a bucket.

    `labels` are the attributes of its events that tell series apart; others stay with the event.
    """

    name: str
    kind: str
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    otel: str = ""

    @property
    def base(self) -> str:
        """The name as a family has it: that of a counter without `_total`."""
        return self.name.removesuffix("_total")

    @property
    def otel_name(self) -> str:
        """The name in OpenTelemetry: dots, no unit, no `_total`."""
        suffix = f"_{UNITS[self.unit]}" if self.unit in UNITS else ""
        return self.otel or "entrenar." + self.base.removeprefix("entrenar_").removesuffix(suffix)


GROUPS = {
    "Run": (
        Row(
            "entrenar_info",
            GAUGE,
            "1",
            "What runs: 1, with its facts as labels",
            ("version", "tier", "threads", "precision", "model", "data", "run"),
        ),
    ),
    "Training": (
        Row("entrenar_step", GAUGE, "1", "The last step that is done"),
        Row("entrenar_planned_steps", GAUGE, "1", "The steps that the run was asked for"),
        Row("entrenar_loss", GAUGE, "1", "Mean loss of the step's trained tokens, in nats"),
        Row("entrenar_held_out_loss", GAUGE, "1", "Mean loss of the held-out tokens, in nats"),
        Row("entrenar_gradient_norm", GAUGE, "1", "Joint norm of the gradients before clipping"),
        Row("entrenar_update_ratio", GAUGE, "1", "Norm of a layer's update over that of its weights", ("layer",)),
        Row("entrenar_learning_rate", GAUGE, "1", "Learning rate of the step"),
        Row("entrenar_tokens_total", COUNTER, "{token}", "Tokens that ran"),
        Row("entrenar_trained_tokens_total", COUNTER, "{token}", "Tokens that ran and count in the loss"),
        Row("entrenar_step_duration_seconds", HISTOGRAM, "s", "Wall time of a step"),
        Row("entrenar_phase_duration_seconds", HISTOGRAM, "s", "Wall time of a part of a step", ("phase",)),
        Row("entrenar_checkpoints_total", COUNTER, "{checkpoint}", "Checkpoints written"),
        Row("entrenar_anomalies_total", COUNTER, "{anomaly}", "Anomalies that began", ("kind", "severity")),
        Row("entrenar_anomalies_open", GAUGE, "{anomaly}", "Anomalies that last", ("kind",)),
    ),
    "Kernels": (
        Row("entrenar_kernel_calls_total", COUNTER, "{call}", "Calls of a kernel", ("kernel",)),
        Row(
            "entrenar_kernel_seconds_total",
            COUNTER,
            "s",
            "Time in a kernel, summed over threads that call it",
            ("kernel",),
        ),
        Row(
            "entrenar_kernel_flops_total", COUNTER, "{operation}", "Floating-point operations of a kernel", ("kernel",)
        ),
        Row(
            "entrenar_kernel_operand_bytes_total", COUNTER, "By", "Bytes of a kernel's operands, once each", ("kernel",)
        ),
    ),
    "Process": (
        Row(
            "entrenar_resident_memory_bytes", GAUGE, "By", "Resident memory of the process", otel="process.memory.usage"
        ),
        Row("entrenar_allocator_bytes", GAUGE, "By", "Memory of the tensor allocator", ("state",)),
        Row(
            "entrenar_page_faults_total",
            COUNTER,
            "{fault}",
            "Page faults of the process; a major one waits for the disk",
            ("type",),
            "process.paging.faults",
        ),
        Row(
            "entrenar_context_switches_total",
            COUNTER,
            "{context_switch}",
            "Context switches of the process; an involuntary one had its core taken away",
            ("type",),
            "process.context_switches",
        ),
    ),
    "Machine": (
        Row("entrenar_cpu_frequency_hertz", GAUGE, "Hz", "Mean frequency of the cores", otel="system.cpu.frequency"),
        Row(
            "entrenar_cpu_throttled_seconds_total",
            COUNTER,
            "s",
            "Time for which the cgroup's CPU quota held the run up",
        ),
        Row("entrenar_cpu_throttled_periods_total", COUNTER, "{period}", "Periods in which the quota was used up"),
        Row(
            "entrenar_cpu_steal_seconds_total",
            COUNTER,
            "s",
            "Time that the hypervisor gave to other machines, all cores",
        ),
        Row(
            "entrenar_pressure_seconds_total",
            COUNTER,
            "s",
            "Time in which some tasks, or all of them (full), waited for a resource (pressure stall information)",
            ("resource", "degree"),
        ),
        Row("entrenar_thermal_throttles_total", COUNTER, "{event}", "Times that the cores were slowed down by heat"),
        Row("entrenar_temperature_celsius", GAUGE, "Cel", "Temperature of the hottest zone"),
        Row(
            "entrenar_memory_errors_total", COUNTER, "{error}", "Errors that the memory controllers counted", ("type",)
        ),
        Row("entrenar_disk_free_bytes", GAUGE, "By", "Room where the run writes"),
    ),
}
TABLE = tuple(row for rows in GROUPS.values() for row in rows)
BY_NAME = {row.name: row for row in TABLE}


def labels_of(row: Row, attributes: Mapping[str, object]) -> tuple[str, ...]:
    """The values of the labels, in the order of the table; "" for one that the event does not say."""
    return tuple(str(attributes.get(label, "")) for label in row.labels)


@dataclass
class Histogram:
    """Observations by bucket, as Prometheus keeps them: counts below each bound and beyond the last, and the sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    sum: float = 0.0

    def add(self, value: float) -> None:
        """Count an observation."""
        self.counts[bisect.bisect_left(SECONDS, value)] += 1
        self.sum += value


class Store(Subscriber):
    """The present value of every series of the table, from the events; events of other names are ignored.

    Read by exporters in threads of their own: `snapshot` is consistent.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, dict[tuple[str, ...], float]] = {}
        self._histograms: dict[str, dict[tuple[str, ...], Histogram]] = {}

    def on_metric(self, metric: Metric) -> None:
        """Add to the series, or replace its value."""
        row = BY_NAME.get(metric.name)
        if row is None:
            return
        labels = labels_of(row, metric.attributes)
        with self._lock:
            if row.kind == HISTOGRAM:
                self._histograms.setdefault(row.name, {}).setdefault(labels, Histogram()).add(metric.value)
            else:
                series = self._values.setdefault(row.name, {})
                series[labels] = metric.value + (series.get(labels, 0.0) if row.kind == COUNTER else 0.0)

    def snapshot(self) -> tuple[dict[str, dict[tuple[str, ...], float]], dict[str, dict[tuple[str, ...], Histogram]]]:
        """Values and histograms by name and labels, as they are now."""
        with self._lock:
            values = {name: dict(series) for name, series in self._values.items()}
            histograms = {
                name: {labels: Histogram(list(one.counts), one.sum) for labels, one in series.items()}
                for name, series in self._histograms.items()
            }
        return values, histograms
