"""Events: spans, which have a duration and a parent, and metrics, which have a value.

Code emits them always; whoever wants them subscribes. Without a subscriber each costs one branch. A subscriber that
raises is dropped with one warning: nothing observed may stop or fail a run.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any


@dataclass(eq=False)
class Span:
    """Something that takes time. `start` and `end` are nanoseconds of `time.time_ns`, `end` 0 while it is open.

    `parent` is the span that was open around it in the same thread; `error` is what ended it, where something did.
    """

    name: str
    attributes: dict[str, Any]
    parent: Span | None = None
    thread: int = field(default_factory=threading.get_ident)
    start: int = 0
    end: int = 0
    error: BaseException | None = None

    def set(self, **attributes: Any) -> None:
        """Add attributes that are known only later."""
        self.attributes.update(attributes)


@dataclass(frozen=True)
class Metric:
    """A value by name, whose end is its unit (`_seconds`, `_bytes`, `_total`); `time` as in Span."""

    name: str
    value: float
    attributes: Mapping[str, Any]
    time: int


@dataclass(frozen=True)
class Event:
    """A named moment with attributes in the span that is open in its thread, None where there is none; `time` as in
    Span."""

    name: str
    attributes: Mapping[str, Any]
    time: int
    span: Span | None


class Subscriber:
    """Hears events, each in the thread where it happens; a method that is not overridden ignores its kind."""

    def on_span_start(self, span: Span) -> None:
        """A span has begun."""

    def on_span_end(self, span: Span) -> None:
        """A span that this subscriber heard begin is over."""

    def on_metric(self, metric: Metric) -> None:
        """A value was measured."""

    def on_event(self, event: Event) -> None:
        """Something happened in a span."""


_subscribers: tuple[Subscriber, ...] = ()  # replaced as a whole: emitting takes no lock
_changing = threading.Lock()
_open: ContextVar[Span | None] = ContextVar("entrenar_open_span", default=None)


def subscribe(subscriber: Subscriber) -> None:
    """Call `subscriber` for every event from now on, until `unsubscribe`."""
    global _subscribers
    with _changing:
        _subscribers = (*_subscribers, subscriber)


def unsubscribe(subscriber: Subscriber) -> None:
    """Call `subscriber` no more; nothing happens where it is not subscribed."""
    global _subscribers
    with _changing:
        _subscribers = tuple(each for each in _subscribers if each is not subscriber)


class Silent(AbstractContextManager["Silent"]):
    """The span without a subscriber."""

    def __exit__(self, *raised: object) -> None:
        return None

    def set(self, **attributes: Any) -> None:
        """As of a span that is heard."""


_SILENT = Silent()


class _Heard(AbstractContextManager[Span]):
    """A span with its hearers, those of its beginning."""

    def __init__(self, name: str, attributes: dict[str, Any]) -> None:
        self.span, self.hearers = Span(name, attributes), _subscribers

    def __enter__(self) -> Span:
        self.span.parent = _open.get()
        _open.set(self.span)
        self.span.start = time.time_ns()
        for subscriber in self.hearers:
            _tell(subscriber, "on_span_start", self.span)
        return self.span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.span.end, self.span.error = time.time_ns(), error
        _open.set(self.span.parent)
        for subscriber in self.hearers:
            if any(each is subscriber for each in _subscribers):
                _tell(subscriber, "on_span_end", self.span)


def span(name: str, **attributes: Any) -> AbstractContextManager[Span | Silent]:
    """A context manager around something that takes time; exceptions pass through it, and its span has them."""
    if not _subscribers:
        return _SILENT
    return _Heard(name, attributes)


def completed(name: str, start: int, end: int, **attributes: Any) -> None:
    """Tell the subscribers a span that is over, in the one that is open; it does not begin before that."""
    if not _subscribers:
        return
    parent = _open.get()
    start = start if parent is None else max(start, parent.start)
    over = Span(name, attributes, parent, start=start, end=max(start, end))
    for subscriber in _subscribers:
        _tell(subscriber, "on_span_start", over)
        _tell(subscriber, "on_span_end", over)


def annotate(**attributes: Any) -> None:
    """Add attributes to the span that is open in this thread, where there is one."""
    here = _open.get()
    if here is not None:
        here.set(**attributes)


def metric(name: str, value: float, **attributes: Any) -> None:
    """Tell the subscribers a value."""
    if not _subscribers:
        return
    measured = Metric(name, value, attributes, time.time_ns())
    for subscriber in _subscribers:
        _tell(subscriber, "on_metric", measured)


def event(name: str, **attributes: Any) -> None:
    """Tell the subscribers that something happened in the open span."""
    if not _subscribers:
        return
    happened = Event(name, attributes, time.time_ns(), _open.get())
    for subscriber in _subscribers:
        _tell(subscriber, "on_event", happened)


def _tell(subscriber: Subscriber, method: str, event: Span | Metric | Event) -> None:
    """Call a method of a subscriber; drop it, with a warning, where it raises."""
    try:
        getattr(subscriber, method)(event)
    except Exception as error:
        unsubscribe(subscriber)
        with suppress(Exception):  # a filter that makes errors of warnings
            warnings.warn(
                f"{type(subscriber).__name__}.{method} raised {type(error).__name__}: {error}; it hears no more "
                "events.",
                RuntimeWarning,
                stacklevel=2,
            )
