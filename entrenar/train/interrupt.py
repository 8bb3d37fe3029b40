"""Signals during a run: the first ends what is being done in order, the second ends it at once.

They are Ctrl-C, SIGTERM, and SIGHUP of a terminal that closes, which may come several times and never ends at once what
is being written.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

HINT = b"\nstopping when this step is done; once more stops at once\n"


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal; `status` is what a program ends with, as a shell counts."""

    def __init__(self, message: str = "", number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number, self.status = number, 128 + number


class _Signals:
    """The signal that was asked to wait, and how many blocks make signals wait."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.waiting = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self.waiting or (self.asked is not None and number != signal.SIGHUP):
            raise Interrupted(number=number)
        if self.asked is not None:
            return
        self.asked = number
        if sys.stderr is not None and sys.stderr.isatty():
            with suppress(OSError):  # a terminal that is going
                os.write(sys.stderr.fileno(), HINT)  # no buffer: a handler may come while one is written


_signals = _Signals()


@contextmanager
def heeded() -> Iterator[None]:
    """Take the signals as this module does inside the block, where nobody else (nohup) has decided what they do."""
    defaults: dict[int, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    ours: list[int] = []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number, default in defaults.items() if signal.getsignal(number) == default]
    for number in ours:
        signal.signal(number, _signals)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, defaults[number])
        _signals.asked = None


@contextmanager
def deferred() -> Iterator[None]:
    """The first signal inside the block is raised at its end, as Interrupted; a second one at once."""
    _signals.waiting += 1
    try:
        yield
    finally:
        _signals.waiting -= 1
    if not _signals.waiting:
        check()


def asked() -> bool:
    """Whether a signal waits."""
    return _signals.asked is not None


def check() -> None:
    """Raise Interrupted where a signal waits."""
    if _signals.asked is not None:
        number, _signals.asked = _signals.asked, None
        raise Interrupted(number=number)
