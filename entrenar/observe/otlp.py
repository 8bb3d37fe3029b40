"""Traces over OTLP: the spans of a run as those of the OpenTelemetry SDK, exported in threads of its own.

What is sampled, how much is buffered and how often it is sent say the SDK's variables (OTEL_TRACES_SAMPLER,
OTEL_BSP_*, OTEL_SPAN_*_LIMIT, OTEL_SDK_DISABLED); where to, those of otlp_sdk.py. TRACEPARENT and TRACESTATE of the
environment are the parent of a span that has none (W3C Trace Context; OpenTelemetry specification, environment
variables as carriers).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from entrenar.observe import otlp_sdk
from entrenar.observe.events import Event, Span, Subscriber, subscribe, unsubscribe
from entrenar.observe.extras import needed

INT64 = 1 << 63
WHERE = ("step", "layer")  # what an exception says of the spans around it
LOST = "spans did not reach"  # in the sentence of a trace that is not whole


@dataclass
class _Open:
    """A span of the SDK, the attributes at its beginning, and the context of its children once it has any."""

    span: Any
    said: dict[str, Any]
    context: Any = None


class Spans(Subscriber):
    """Records spans and events through `tracer`. Spans without a parent are children of the first, or of `outer`."""

    def __init__(self, tracer: Any, outer: Any) -> None:
        self._tracer, self._outer = tracer, outer
        self._trace = needed("opentelemetry.trace", "observe.trace")
        self._open: dict[Span, _Open] = {}
        self._root: _Open | None = None
        self._counting = threading.Lock()
        self.ended = 0  # spans that are to be exported

    @property
    def trace_id(self) -> str | None:
        """The trace, 32 hex digits; None where nothing was recorded."""
        context = self._root.span.get_span_context() if self._root is not None else None
        return f"{context.trace_id:032x}" if context is not None and context.trace_flags.sampled else None

    @property
    def traceparent(self) -> str | None:
        """The first span as the W3C header of that name; None where nothing was recorded."""
        if self.trace_id is None or self._root is None:
            return None
        return f"00-{self.trace_id}-{self._root.span.get_span_context().span_id:016x}-01"

    def on_span_start(self, span: Span) -> None:
        """Begin the span in that of its parent."""
        parent = self._open.get(span.parent) if span.parent is not None else None
        parent = parent or self._root
        if parent is None:
            context = self._outer
        elif parent.context is None:
            context = parent.context = self._trace.set_span_in_context(parent.span)
        else:
            context = parent.context
        begun = self._tracer.start_span(span.name, context, attributes=typed(span.attributes), start_time=span.start)
        self._open[span] = _Open(begun, dict(span.attributes))
        if self._root is None:
            self._root = self._open[span]

    def on_span_end(self, span: Span) -> None:
        """End the span with all its attributes, and what ended it."""
        over = self._open.pop(span, None)
        if over is None:
            return
        if over.span.is_recording():
            later = {key: value for key, value in span.attributes.items() if over.said.get(key, over) is not value}
            if later:
                over.span.set_attributes(typed(later))
            if span.error is not None:
                where = {key: value for key, value in _upwards(span).items() if key in WHERE}
                over.span.record_exception(span.error, typed(where), timestamp=span.end)
                status = f"{type(span.error).__name__}: {span.error}"
                over.span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, status))
        self._end(over.span, span.end)

    def on_event(self, event: Event) -> None:
        """Add the event to its span, or to the run's where it happened in none."""
        here = self._open.get(event.span) if event.span is not None else None
        here = here or self._root
        if here is not None and here.span.is_recording():
            here.span.add_event(event.name, typed(event.attributes), timestamp=event.time)

    def close(self) -> None:
        """End what is still open."""
        while self._open:
            self._end(self._open.popitem()[1].span, None)

    def _end(self, span: Any, time: int | None) -> None:
        with self._counting:
            self.ended += span.is_recording() and span.get_span_context().trace_flags.sampled
        span.end(time)


def _upwards(span: Span) -> dict[str, Any]:
    """The attributes of a span and those around it, the innermost first."""
    found: dict[str, Any] = {}
    here: Span | None = span
    while here is not None:
        found = {**here.attributes, **found}
        here = here.parent
    return found


def typed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the types that OpenTelemetry has, those of None left out."""
    return {key: _typed(value) for key, value in attributes.items() if value is not None}


def _typed(value: Any) -> Any:
    if type(value) in (float, str, bool):  # most are: what follows takes several times as long
        return value
    if isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value if -INT64 <= value < INT64 else str(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (list, tuple)):
        items = [_typed(item) for item in value]
        same = all(type(item) is type(items[0]) and not isinstance(item, list) for item in items)
        return items if same else [str(item) for item in items]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a scalar of NumPy
        return _typed(value.item())
    return str(value)


class Counted:
    """A span exporter that counts what `exporter` was given and took; what it raises is a failed export, logged."""

    def __init__(self, exporter: Any, where: str, option: str = "observe.trace") -> None:
        self._exporter, self.where, self.option = exporter, where, option
        self._result = needed("opentelemetry.sdk.trace.export", "observe.trace").SpanExportResult
        self._log = logging.getLogger("opentelemetry.entrenar")
        self._over = False
        self.taken = 0

    def export(self, spans: Sequence[Any]) -> Any:
        """Export a batch, unless the run is over."""
        if self._over:
            return self._result.FAILURE
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # of whatever library sends them: the receiver may have answered anything
            self._log.error("Spans cannot be exported to %s (%s: %s).", self.where, type(error).__name__, error)
            return self._result.FAILURE
        if result is self._result.SUCCESS:
            self.taken += len(spans)
        return result

    def shutdown(self) -> None:
        """Take no more, and end what is under way."""
        if not self._over:
            self._over = True
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is buffered here."""
        return True


def batching(exporter: Any) -> Any:
    """A processor that hands spans to `exporter` in a thread of its own, its buffer bounded (OTEL_BSP_*).

    ValueError where the variables contradict each other.
    """
    return needed("opentelemetry.sdk.trace.export", "observe.trace").BatchSpanProcessor(exporter)


def outer_context(say: Callable[[str], None]) -> Any:
    """The context that TRACEPARENT and TRACESTATE give; one that is malformed is told to `say`, and left out."""
    given = os.environ.get("TRACEPARENT", "").strip()
    context = needed("opentelemetry.context", "observe.trace").Context()
    if not given:
        return context
    propagation = needed("opentelemetry.trace.propagation.tracecontext", "observe.trace")
    carrier = {"traceparent": given, "tracestate": os.environ.get("TRACESTATE", "")}
    found = propagation.TraceContextTextMapPropagator().extract(carrier, context)
    parent = needed("opentelemetry.trace", "observe.trace").get_current_span(found).get_span_context()
    if not parent.is_valid:
        say(f"TRACEPARENT is {given!r}, which is no W3C trace context (00-TRACE-SPAN-FLAGS): the trace has no parent.")
    return found


@contextmanager
def tracing(exporters: Sequence[Counted], attributes: Mapping[str, str], say: Callable[[str], None]) -> Iterator[Spans]:
    """Export the spans inside the block to `exporters`, and the last ones when it is left, in bounded time.

    `attributes` are the resource's. `say` gets one sentence where something fails, and one for what was lost.
    """
    sdk = needed("opentelemetry.sdk.trace", "observe.trace")
    with otlp_sdk.one_sentence("traces", "observe.trace", say):
        provider = sdk.TracerProvider(resource=otlp_sdk.resource(attributes), shutdown_on_exit=False)
        for exporter in exporters:
            provider.add_span_processor(batching(exporter))
        spans = Spans(provider.get_tracer("entrenar"), outer_context(say))
        subscribe(spans)
        try:
            yield spans
        finally:
            unsubscribe(spans)
            spans.close()
            _shut_down(provider, exporters)
            for exporter in exporters:
                lost = spans.ended - exporter.taken
                if lost:
                    say(f"{exporter.option}: {lost} of {spans.ended} {LOST} {exporter.where}.")


def _shut_down(provider: Any, exporters: Sequence[Counted]) -> None:
    """Send what is buffered, but for no longer than LAST_MILLISECONDS: a thread that hangs is left to itself."""
    last = threading.Thread(target=provider.shutdown, name="entrenar-traces", daemon=True)
    last.start()
    last.join(otlp_sdk.LAST_MILLISECONDS / 1000)
    if last.is_alive():
        for exporter in exporters:
            exporter.shutdown()
