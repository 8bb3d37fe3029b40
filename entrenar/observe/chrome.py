"""Spans as a Chrome trace, which Perfetto and chrome://tracing open (Trace Event Format, its JSON array)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType

from entrenar.observe.events import Span, Subscriber


class ChromeTrace(Subscriber):
    """Writes each span, as it ends, into `path`: a complete event (ph X) with microseconds, process and thread.

    A context manager. A reader takes the file of a killed run too: the format lets the closing bracket be missing.
    OSError where the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._file.write("[")
        self._separator = "\n"

    def on_span_end(self, span: Span) -> None:
        """Write the span."""
        arguments = span.attributes if span.error is None else {**span.attributes, "error": repr(span.error)}
        event = {
            "name": span.name,
            "ph": "X",
            "ts": span.start / 1000,
            "dur": (span.end - span.start) / 1000,
            "pid": os.getpid(),
            "tid": span.thread,
            "args": arguments,
        }
        self._file.write(self._separator + json.dumps(event))
        self._separator = ",\n"

    def __enter__(self) -> ChromeTrace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the array and the file."""
        with self._file as file:
            file.write("\n]\n")
