"""The metrics over OTLP: instruments of the OpenTelemetry SDK, made from the table.

Where they go and how often is what the SDK's variables say: OTEL_EXPORTER_OTLP_(METRICS_)ENDPOINT, _PROTOCOL (grpc,
http/protobuf), _HEADERS, _TIMEOUT ..., OTEL_METRIC_EXPORT_INTERVAL, OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME,
OTEL_SDK_DISABLED (OpenTelemetry specification, environment variables and protocol/exporter).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from entrenar.observe import otlp_sdk as otlp
from entrenar.observe.events import Metric, Subscriber, subscribe, unsubscribe
from entrenar.observe.extras import needed
from entrenar.observe.metrics import BY_NAME, COUNTER, HISTOGRAM, SECONDS, TABLE, labels_of


class Instruments(Subscriber):
    """Records the events of the table in instruments of `meter`."""

    def __init__(self, meter: Any) -> None:
        self._record: dict[str, Callable[..., None]] = {}
        for row in TABLE:
            options = {"unit": row.unit, "description": row.help}
            if row.kind == HISTOGRAM:
                bounds = {"explicit_bucket_boundaries_advisory": SECONDS}
                self._record[row.name] = meter.create_histogram(row.otel_name, **options, **bounds).record
            elif row.kind == COUNTER:
                self._record[row.name] = meter.create_counter(row.otel_name, **options).add
            else:
                self._record[row.name] = meter.create_gauge(row.otel_name, **options).set

    def on_metric(self, metric: Metric) -> None:
        """Record the value under its labels."""
        row = BY_NAME.get(metric.name)
        if row is not None:
            labels = zip(row.labels, labels_of(row, metric.attributes), strict=True)
            self._record[row.name](metric.value, dict(labels))


def exporter() -> Any:
    """The OTLP exporter of metrics that the environment asks for; ConfigError where what it says cannot be done."""
    return otlp.exporter("metrics", "observe.metrics")


class Exports:
    """Counts exports that are not known to have succeeded."""

    def __init__(self) -> None:
        self.failed = 0

    def counted(self, export: Callable[..., Any]) -> Callable[..., Any]:
        """`export`, counted."""

        def counting(*arguments: Any, **options: Any) -> Any:
            self.failed += 1
            result = export(*arguments, **options)
            self.failed -= result.name == "SUCCESS"
            return result

        return counting


@contextmanager
def exporting(attributes: Mapping[str, str], say: Callable[[str], None]) -> Iterator[None]:
    """Export the metrics inside the block, in a thread of the SDK, and the last ones when it is left.

    `attributes` are the resource's. `say` gets one sentence where the receiver is not there: the run goes on.
    """
    sdk = needed("opentelemetry.sdk.metrics", "observe.metrics")
    export = needed("opentelemetry.sdk.metrics.export", "observe.metrics")
    exports, sender = Exports(), exporter()
    sender.export = exports.counted(sender.export)
    reader = export.PeriodicExportingMetricReader(sender)
    provider = sdk.MeterProvider([reader], otlp.resource(attributes), shutdown_on_exit=False)
    instruments = Instruments(provider.get_meter("entrenar"))
    with otlp.one_sentence("metrics", "observe.metrics", say) as complaints:
        subscribe(instruments)
        try:
            yield
        finally:
            unsubscribe(instruments)
            try:
                provider.shutdown(otlp.LAST_MILLISECONDS)
            except Exception as error:  # the SDK sums up what failed in one of no particular class
                complaints.complain(str(error))
            if exports.failed:  # the SDK holds back a sentence that it has said of another signal
                complaints.complain(f"{exports.failed} exports failed")
