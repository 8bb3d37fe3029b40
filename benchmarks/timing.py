"""How a side times its own work; imported by the workers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# wall time, or with --cpu-time what this process (on one thread) used of a CPU that others share
ON_CPU = os.environ.get("BENCHMARK_CLOCK") == "cpu"
clock = time.process_time if ON_CPU else time.perf_counter
LONG = 0.2  # seconds after which a call needs neither warm-up nor repetition


def timed(function: Callable[..., Any], setup: Callable[[], Any] | None = None, at_least: float = 0.04) -> float:
    """Seconds of one call: the mean of as many as fill `at_least`, after one that warms caches and wakes threads.

    `setup` runs untimed before each call, which gets what it returned.
    """

    def once() -> float:
        arguments = () if setup is None else (setup(),)
        started = clock()
        result = function(*arguments)
        seconds = clock() - started
        del result  # freed outside of the measurement, as the next layer's work would
        return seconds

    first = once()
    if first >= LONG:
        return first
    total, calls = 0.0, 0
    while total < at_least:
        total += once()
        calls += 1
    return total / calls


def peak_rss_mib() -> float:
    """The most memory that this process has held so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
