"""Spans and metrics: who hears what, in which thread, what an error does, and what they cost when nobody listens."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from entrenar.observe import Event, Metric, Span, Subscriber, event, metric, span, subscribe, unsubscribe
from entrenar.observe.events import completed


class Log(Subscriber):
    """Everything that was heard, in order."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str]] = []
        self.spans: dict[str, Span] = {}
        self.metrics: list[Metric] = []
        self.events: list[Event] = []

    def on_span_start(self, span: Span) -> None:
        self.heard.append(("start", span.name))
        self.spans[span.name] = span

    def on_span_end(self, span: Span) -> None:
        self.heard.append(("end", span.name))

    def on_metric(self, metric: Metric) -> None:
        self.metrics.append(metric)

    def on_event(self, event: Event) -> None:
        self.events.append(event)


@contextmanager
def listening(*subscribers: Subscriber) -> Iterator[None]:
    for subscriber in subscribers:
        subscribe(subscriber)
    try:
        yield
    finally:
        for subscriber in subscribers:
            unsubscribe(subscriber)


# ---------------------------------------------------------------------- what is heard
@pytest.mark.unit
def test_spans_nest_and_have_their_attributes_and_times() -> None:
    log = Log()
    with listening(log):
        with span("step", step=3) as outer:
            with span("forward"):
                pass
            with span("backward"):
                pass
            outer.set(loss=0.5)
        metric("duration_seconds", 1.5, step=3)
    assert log.heard == [
        *[("start", "step"), ("start", "forward"), ("end", "forward")],
        *[("start", "backward"), ("end", "backward"), ("end", "step")],
    ]
    step, forward, backward = (log.spans[name] for name in ("step", "forward", "backward"))
    assert step.parent is None and forward.parent is step and backward.parent is step
    assert step.attributes == {"step": 3, "loss": 0.5}
    assert step.start <= forward.start <= forward.end <= backward.start <= backward.end <= step.end
    assert {found.thread for found in log.spans.values()} == {threading.get_ident()}
    (measured,) = log.metrics
    assert (measured.name, measured.value, measured.attributes) == ("duration_seconds", 1.5, {"step": 3})
    assert measured.time >= step.end


@pytest.mark.unit
def test_an_event_is_of_the_span_that_is_open() -> None:
    log = Log()
    event("nobody hears")
    with listening(log):
        with span("step"), span("forward"):
            event("anomaly", z=5.0)
        event("outside")
    inside, outside = log.events
    assert (inside.name, inside.attributes, inside.span) == ("anomaly", {"z": 5.0}, log.spans["forward"])
    assert inside.span is not None and inside.span.start <= inside.time <= inside.span.end
    assert outside.span is None


@pytest.mark.unit
def test_an_error_passes_through_and_its_spans_have_it() -> None:
    log = Log()
    error = ValueError("x")
    with listening(log):
        with pytest.raises(ValueError) as raised, span("step"), span("forward"):
            raise error
        with span("after"):
            pass
    assert raised.value is error
    assert log.spans["step"].error is log.spans["forward"].error is error
    assert log.spans["after"].parent is None and log.spans["after"].error is None


@pytest.mark.unit
def test_threads_have_spans_of_their_own() -> None:
    log, barrier = Log(), threading.Barrier(4)

    def work(number: int) -> None:
        with span(f"outer {number}"):
            barrier.wait()
            with span(f"inner {number}"):
                barrier.wait()

    with listening(log), span("main"):
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, thread in enumerate(threads):
        outer, inner = log.spans[f"outer {number}"], log.spans[f"inner {number}"]
        assert outer.parent is None and inner.parent is outer
        assert outer.thread == inner.thread == thread.ident
    assert len(log.heard) == 2 * 9


@pytest.mark.unit
def test_a_subscriber_hears_the_end_of_those_spans_alone_whose_beginning_it_heard() -> None:
    early, late = Log(), Log()
    with listening(early), span("outer"):
        with listening(late), span("inner"):
            pass
        unsubscribe(early)
        unsubscribe(late)  # again
    assert early.heard == [("start", "outer"), ("start", "inner"), ("end", "inner")]
    assert late.heard == [("start", "inner"), ("end", "inner")]
    silent = span("nobody listens")
    with silent, listening(early):
        pass
    assert len(early.heard) == 3


# ---------------------------------------------------------------------- what fails
class Failing(Log):
    """Raises at one kind of event."""

    def __init__(self, method: str, error: BaseException) -> None:
        super().__init__()

        def fail(event: object) -> None:
            raise error

        setattr(self, method, fail)


@pytest.mark.unit
@pytest.mark.parametrize("method", ["on_span_start", "on_span_end", "on_metric", "on_event"])
@pytest.mark.parametrize("error", [ValueError("bad"), MemoryError(), OSError(28, "No space left")], ids=repr)
def test_a_subscriber_that_raises_is_dropped_with_one_warning(method: str, error: Exception) -> None:
    failing, sound = Failing(method, error), Log()
    with listening(failing, sound), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for number in range(3):
            with span(f"step {number}"):
                metric("x_total", number)
                event("x")
    (warning,) = warned
    assert str(warning.message).startswith(f"Failing.{method} raised {type(error).__name__}: ")
    assert len(sound.heard) == 6 and len(sound.metrics) == 3
    assert len(failing.heard) <= 1


@pytest.mark.unit
def test_a_warning_that_is_an_error_fails_nothing() -> None:
    with listening(Failing("on_span_start", ValueError())), warnings.catch_warnings():
        warnings.simplefilter("error")
        with span("step"):
            pass


@pytest.mark.unit
def test_an_interrupt_in_a_subscriber_is_the_users() -> None:
    with listening(Failing("on_metric", KeyboardInterrupt())), pytest.raises(KeyboardInterrupt):
        metric("x_total", 1)


@pytest.mark.unit
def test_a_subscriber_may_leave_while_it_hears() -> None:
    class Once(Log):
        def on_metric(self, metric: Metric) -> None:
            super().on_metric(metric)
            unsubscribe(self)

    once, log = Once(), Log()
    with listening(once, log):
        for _ in range(2):
            metric("x_total", 1)
    assert (len(once.metrics), len(log.metrics)) == (1, 2)


# ---------------------------------------------------------------------- what they cost
@pytest.mark.unit
def test_nothing_is_made_for_nobody() -> None:
    """Every silent span is one object; benchmarks/tape.py prints what an event costs."""
    assert span("a") is span("b", step=1)
    log = Log()
    with listening(log):
        assert span("a") is not span("a")
    assert span("a") is span("b")


@pytest.mark.architecture
def test_events_load_nothing_of_the_engine() -> None:
    program = "import entrenar.observe, sys; print(sorted(n for n in sys.modules if n.startswith('entrenar')), "
    program += "[n for n in ('numpy', 'rich') if n in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown == "['entrenar', 'entrenar.observe', 'entrenar.observe.events'] []\n"


@pytest.mark.unit
def test_a_span_that_is_over_is_heard_at_once_in_the_open_one_and_within_it() -> None:
    log = Log()
    completed("unheard", 1, 2)
    subscribe(log)
    try:
        with span("outer") as outer:
            completed("inner", 1, 2, layer=3)
        completed("alone", 5, 4)
    finally:
        unsubscribe(log)
    assert log.heard == [
        ("start", "outer"),
        ("start", "inner"),
        ("end", "inner"),
        ("end", "outer"),
        ("start", "alone"),
        ("end", "alone"),
    ]
    inner, alone = log.spans["inner"], log.spans["alone"]
    assert isinstance(outer, Span) and inner.parent is outer and inner.attributes == {"layer": 3}
    assert inner.start == inner.end == outer.start
    assert alone.parent is None and (alone.start, alone.end) == (5, 5)
