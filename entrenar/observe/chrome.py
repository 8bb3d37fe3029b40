"""Spans as a Chrome trace, which Perfetto and chrome://tracing open (Trace Event Format, its JSON array)."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from entrenar.observe import continued
from entrenar.observe.events import Event, Span, Subscriber
from entrenar.observe.stream import Stream

ENCODER = json.JSONEncoder(allow_nan=False)


class ChromeTrace(Subscriber):
    """Writes each span, as it ends, into `path`: a complete event (ph X) with microseconds, process and thread.

    Events are instants of their thread (ph i), and each thread's name goes before what happens in it (ph M). A context
    manager. A reader takes the file of a killed run too: the format lets the closing bracket be missing. `say` gets one
    sentence where the file cannot be written. With `resumed`, what the file holds is kept, and written on.
    """

    def __init__(self, path: Path, say: Callable[[str], None], resumed: bool = False) -> None:
        self._stream = Stream(path, "observe.trace_chrome", say, continued.array if resumed else None)
        if self._stream.between is None:
            self._stream.write("[")
        self._separator, self._process = f"{self._stream.between or ''}\n", os.getpid()
        self._named: set[int] = set()
        self._writing = threading.Lock()

    def on_span_end(self, span: Span) -> None:
        """Write the span."""
        arguments = span.attributes if span.error is None else {**span.attributes, "error": repr(span.error)}
        times = {"ts": span.start / 1000, "dur": (span.end - span.start) / 1000}
        self._write({"name": span.name, "ph": "X", **times, "tid": span.thread, "args": arguments})

    def on_event(self, event: Event) -> None:
        """Write the event."""
        happened = {"ph": "i", "s": "t", "ts": event.time / 1000, "tid": threading.get_ident()}
        self._write({"name": event.name, **happened, "args": dict(event.attributes)})

    def _write(self, line: dict[str, Any]) -> None:
        """Write an entry of the thread that runs, behind the thread's name where it is its first."""
        with self._writing:
            if not self._stream.ready:
                return
            lines = [line]
            if line["tid"] not in self._named:
                self._named.add(line["tid"])
                name = {"name": threading.current_thread().name}
                lines.insert(0, {"name": "thread_name", "ph": "M", "tid": line["tid"], "args": name})
            for each in lines:
                self._stream.write(self._separator + encoded({"pid": self._process, **each}))
                self._separator = ",\n"

    def __enter__(self) -> ChromeTrace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the array and the file."""
        with self._writing:
            self._stream.write("\n]\n")
            self._stream.close()


def encoded(entry: dict[str, Any]) -> str:
    """JSON of an entry, on a line; values that JSON does not have are text."""
    try:
        return ENCODER.encode(entry)
    except (TypeError, ValueError):
        return ENCODER.encode(plain(entry))


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: NaN and infinities, and what is no plain value, as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    return value if value is None or isinstance(value, int | str) else str(value)
