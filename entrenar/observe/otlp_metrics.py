"""The metrics over OTLP: instruments of the OpenTelemetry SDK, made from the table.

Where they go and how often is what the SDK's variables say: OTEL_EXPORTER_OTLP_(METRICS_)ENDPOINT, _PROTOCOL (grpc,
http/protobuf), _HEADERS, _TIMEOUT ..., OTEL_METRIC_EXPORT_INTERVAL, OTEL_RESOURCE_ATTRIBUTES, OTEL_SERVICE_NAME,
OTEL_SDK_DISABLED (OpenTelemetry specification, environment variables and protocol/exporter).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from entrenar.errors import ConfigError
from entrenar.observe.events import Metric, Subscriber, subscribe, unsubscribe
from entrenar.observe.extras import needed
from entrenar.observe.metrics import BY_NAME, COUNTER, HISTOGRAM, SECONDS, TABLE, labels_of

PROTOCOLS = {"grpc": "grpc", "http/protobuf": "http"}
LAST_MILLISECONDS = 3000  # for the values of the end: a receiver that does not answer holds nobody up for longer


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


class _OneSentence(logging.Handler):
    """Says the SDK's first complaint; the rest, one an export, is left out."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say, self._said = say, False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._said:
            self._said = True
            self._say(f"observe.metrics: {' '.join(record.getMessage().split()).rstrip('.')}; the run goes on.")


def exporter() -> Any:
    """The OTLP exporter of metrics that the environment asks for; ConfigError for a protocol that there is not."""
    for variable in ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        asked = os.environ.get(variable, "").strip()
        if asked and asked not in PROTOCOLS:
            raise ConfigError(f"{variable} is {asked!r}, expected one of {', '.join(PROTOCOLS)}.")
        if asked:
            break
    name = PROTOCOLS[asked or "grpc"]
    module = needed(f"opentelemetry.exporter.otlp.proto.{name}.metric_exporter", "observe.metrics")
    return module.OTLPMetricExporter()


@contextmanager
def exporting(attributes: Mapping[str, str], say: Callable[[str], None]) -> Iterator[None]:
    """Export the metrics inside the block, in a thread of the SDK, and the last ones when it is left.

    `attributes` are the resource's. `say` gets one sentence where the receiver is not there: the run goes on.
    """
    sdk = needed("opentelemetry.sdk.metrics", "observe.metrics")
    export = needed("opentelemetry.sdk.metrics.export", "observe.metrics")
    resources = needed("opentelemetry.sdk.resources", "observe.metrics")
    resource = resources.Resource.create({"service.name": "entrenar", **attributes})
    if named := os.environ.get("OTEL_SERVICE_NAME"):
        resource = resource.merge(resources.Resource({"service.name": named}))
    log, handler = logging.getLogger("opentelemetry"), _OneSentence(say)
    reader = export.PeriodicExportingMetricReader(exporter())
    provider = sdk.MeterProvider([reader], resource, shutdown_on_exit=False)
    instruments = Instruments(provider.get_meter("entrenar"))
    propagates, log.propagate = log.propagate, False
    log.addHandler(handler)
    subscribe(instruments)
    try:
        yield
    finally:
        unsubscribe(instruments)
        try:
            provider.shutdown(LAST_MILLISECONDS)
        except Exception as error:  # the SDK sums up what failed in one of no particular class
            say(f"observe.metrics: {error}; the run goes on.")
        log.removeHandler(handler)
        log.addHandler(logging.NullHandler())  # its threads may end later: not on standard error
        log.propagate = propagates
