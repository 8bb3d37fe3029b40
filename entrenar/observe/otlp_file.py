"""Spans as OTLP JSON lines: one ExportTraceServiceRequest a line (OpenTelemetry specification, OTLP file exporter).

The encoding is protobuf's JSON mapping with ids as hexadecimal digits, enumerations as numbers and 64-bit integers as
text (OTLP specification, JSON protobuf encoding).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from entrenar.observe import continued
from entrenar.observe.extras import needed
from entrenar.observe.stream import Stream

HAS_REMOTE, REMOTE = 0x100, 0x200  # SpanFlags: whether the parent is another process's is known, and it is


class JsonLines:
    """A span exporter into `path`; `say` gets one sentence where it cannot be written.

    With `resumed`, lines are added to those that the file has.
    """

    def __init__(self, path: Path, say: Callable[[str], None], resumed: bool = False) -> None:
        self._stream = Stream(path, "observe.trace_file", say, continued.lines if resumed else None)
        self._stream.write(self._stream.between or "")
        self._result = needed("opentelemetry.sdk.trace.export", "observe.trace_file").SpanExportResult

    def export(self, spans: Sequence[Any]) -> Any:
        """Append a line."""
        line = json.dumps(request(spans), allow_nan=False, separators=(",", ":"))
        return self._result.SUCCESS if self._stream.write(line + "\n", flush=True) else self._result.FAILURE

    def shutdown(self) -> None:
        """Close the file."""
        self._stream.close()


def request(spans: Sequence[Any]) -> dict[str, Any]:
    """Spans of one resource as an ExportTraceServiceRequest."""
    first = spans[0]
    scope = {"name": first.instrumentation_scope.name}
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": pairs(first.resource.attributes)},
                "scopeSpans": [{"scope": scope, "spans": [_span(span) for span in spans]}],
            }
        ]
    }


def _span(span: Any) -> dict[str, Any]:
    context, parent = span.get_span_context(), span.parent
    found: dict[str, Any] = {"traceId": f"{context.trace_id:032x}", "spanId": f"{context.span_id:016x}"}
    flags = int(context.trace_flags) | HAS_REMOTE
    if parent is not None:
        found["parentSpanId"] = f"{parent.span_id:016x}"
        flags |= REMOTE if parent.is_remote else 0
    if context.trace_state:
        found["traceState"] = context.trace_state.to_header()
    found |= {
        "flags": flags,
        "name": span.name,
        "kind": span.kind.value + 1,  # the SDK counts from 0, where OTLP has "unspecified"
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": pairs(span.attributes or {}),
        "status": {"code": span.status.status_code.value},
    }
    if span.status.description:
        found["status"]["message"] = span.status.description
    if span.events:
        found["events"] = [_event(event) for event in span.events]
    for key, count in (
        ("droppedAttributesCount", span.dropped_attributes),
        ("droppedEventsCount", span.dropped_events),
    ):
        if count:
            found[key] = count
    return found


def _event(event: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"timeUnixNano": str(event.timestamp), "name": event.name}
    if event.attributes:
        found["attributes"] = pairs(event.attributes)
    return found


def pairs(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Attributes as OTLP has them: pairs of a key and a typed value."""
    return [{"key": key, "value": _value(value)} for key, value in attributes.items()]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value if math.isfinite(value) else _NONFINITE[str(value)]}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return {"arrayValue": {"values": [_value(item) for item in value]}}
    return {"stringValue": str(value)}


_NONFINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}  # protobuf's JSON mapping
