"""What a chat template's rendering is, and its date: without jinja2, which is imported where a template is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime

REASONING = ("reasoning_content", "thinking", "reasoning")  # names of a message's reasoning, as transformers has them

_DATE: ContextVar[datetime | None] = ContextVar("rendering_date", default=None)


@contextmanager
def rendering_date(date: datetime) -> Iterator[None]:
    """Within it, templates that write today's date write this one: a run keeps its date, also where it is resumed."""
    token = _DATE.set(date)
    try:
        yield
    finally:
        _DATE.reset(token)


def today() -> datetime:
    """The date that templates write: that of `rendering_date`, else now."""
    return _DATE.get() or datetime.now()


@dataclass(frozen=True)
class Rendering:
    """What a template writes, and the (start, stop) of each of its `{% generation %}` blocks."""

    text: str
    generated: list[tuple[int, int]]
