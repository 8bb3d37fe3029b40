"""Where a run's time went: kernels by shape against the machine's measured peak, and what was outside of kernels.

Every thread-second of a run is one of: in kernels, on which all threads are at work (or wait for each other); outside
of them in the interpreter; outside of them without a CPU; and, while the run's one thread is outside, those of the
others, which have nothing to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from entrenar._kernels import profile as counters
from entrenar.observe.peak import Peak

PHASES = ("data", "forward", "backward", "reduce", "clip", "optimizer", "evaluate", "checkpoint")  # of a step: spans
OTHER_SHAPES = "other shapes"
Key = tuple[str, str, tuple[int, ...] | None, str, str]  # kernel, phase, extents, weight type, format
Amounts = tuple[int, float, int, int]  # calls, seconds, FLOPs, bytes


@dataclass(frozen=True)
class Row:
    """What one kernel did on operands of one shape, in one phase ("" where it belongs to none) or in all."""

    kernel: str
    shape: str
    phase: str
    arithmetic: str
    extents: tuple[int, ...]
    calls: int
    seconds: float
    flops: int
    bytes: int

    @property
    def gflops(self) -> float:
        """1e9 operations a second; 0 where nothing was timed."""
        return self.flops / 1e9 / self.seconds if self.seconds else 0.0

    @property
    def gbs(self) -> float:
        """Operands in GB a second."""
        return self.bytes / 1e9 / self.seconds if self.seconds else 0.0

    def least(self, peak: Peak) -> float:
        """Seconds that it takes at the roof: of the arithmetic or of memory, whichever takes longer."""
        return max(self.flops / 1e9 / rate_of(peak, self.arithmetic), self.bytes / 1e9 / peak.read)

    def share(self, peak: Peak) -> float:
        """Share of the machine's peak, the roofline's; above 1 where operands came out of the caches."""
        return self.least(peak) / self.seconds if self.seconds else 0.0

    def bound(self, peak: Peak) -> str:
        """What its roof is: "compute" or "memory"."""
        return "compute" if self.flops / rate_of(peak, self.arithmetic) > self.bytes / peak.read else "memory"

    def lost(self, peak: Peak) -> float:
        """Seconds beyond those at the roof."""
        return max(0.0, self.seconds - self.least(peak))


def rate_of(peak: Peak, arithmetic: str) -> float:
    """The measured rate of an arithmetic, or that of fp32 where none was measured."""
    return float(getattr(peak, arithmetic)) or peak.fp32


@dataclass(frozen=True)
class Counts:
    """The counters at a moment, from when on `since` the counts of another are taken off."""

    time: float
    shapes: Mapping[Key, Amounts]
    outside: Mapping[str, tuple[float, float]]
    elsewhere: float

    @staticmethod
    def now() -> Counts:
        """The counters as they stand; the time is a monotonic clock's, in seconds."""
        outside = counters.outside()
        return Counts(time.perf_counter(), dict(counters.shapes()), outside, counters.elsewhere())


@dataclass(frozen=True)
class Profile:
    """What happened between two moments of a run: `steps` are the first and the last of them, 0 where there is none.

    `outside` has seconds and CPU seconds of the run's thread outside of kernels, by phase; `elsewhere` the seconds of
    kernels that other threads called. Rows are of one shape and phase each.
    """

    wall_seconds: float
    threads: int
    rows: tuple[Row, ...]
    outside: Mapping[str, tuple[float, float]]
    elsewhere: float
    peak: Peak
    steps: tuple[int, int] = (0, 0)
    unix_end: float = field(default_factory=time.time)

    @staticmethod
    def between(before: Counts, after: Counts, peak: Peak, steps: tuple[int, int] = (0, 0)) -> Profile:
        """What was counted between two moments, on `peak.threads` threads."""
        rows = []
        for key, amounts in after.shapes.items():
            earlier = before.shapes.get(key, (0, 0.0, 0, 0))
            calls, seconds, flops, moved = (b - a for a, b in zip(earlier, amounts, strict=True))
            if calls:
                kernel, phase, extents, weight, arithmetic = key
                shape = shape_name(extents, weight, arithmetic)
                rows.append(
                    Row(kernel, shape, phase, arithmetic, extents or (), int(calls), seconds, int(flops), int(moved))
                )
        outside = {}
        for phase, (seconds, cpu) in after.outside.items():
            earlier_seconds, earlier_cpu = before.outside.get(phase, (0.0, 0.0))
            outside[phase] = (seconds - earlier_seconds, min(cpu - earlier_cpu, seconds - earlier_seconds))
        return Profile(
            after.time - before.time,
            peak.threads,
            tuple(rows),
            outside,
            after.elsewhere - before.elsewhere,
            peak,
            steps,
        )

    def kernels(self) -> list[Row]:
        """Rows of one shape each, whatever the phase, the longest first."""
        return sorted(merged(self.rows, lambda row: replace(row, phase="")), key=lambda row: -row.seconds)

    @property
    def kernel_seconds(self) -> float:
        """Seconds that the run's thread was in kernels."""
        return sum(row.seconds for row in self.rows) - self.elsewhere

    @property
    def interpreter_seconds(self) -> float:
        """CPU seconds of the run's thread outside of kernels."""
        return sum(cpu for _, cpu in self.outside.values())

    @property
    def outside_seconds(self) -> float:
        """Seconds of the run's thread outside of kernels."""
        return sum(seconds for seconds, _ in self.outside.values())

    def thread_seconds(self) -> dict[str, float]:
        """The thread-seconds of the run by what they were; their sum is wall time times threads but for the clocks."""
        outside, interpreter = self.outside_seconds, self.interpreter_seconds
        return {
            "kernels": self.kernel_seconds * self.threads,
            "interpreter": interpreter,
            "waiting": outside - interpreter,
            "single_threaded": outside * (self.threads - 1),
        }

    def to_json(self, bottlenecks: list[str]) -> dict[str, Any]:
        """profile.json: plain values, seconds and bytes, rates in 1e9 a second."""
        return {
            "wall_seconds": self.wall_seconds,
            "threads": self.threads,
            "first_step": self.steps[0],
            "last_step": self.steps[1],
            "kernels": [
                {
                    "kernel": row.kernel,
                    "shape": row.shape,
                    "calls": row.calls,
                    "seconds": row.seconds,
                    "flops": row.flops,
                    "bytes": row.bytes,
                    "gflops": row.gflops,
                    "gbs": row.gbs,
                    "bound": row.bound(self.peak),
                    "share_of_peak": row.share(self.peak),
                }
                for row in self.kernels()
            ],
            "outside": {
                phase: {"seconds": seconds, "cpu_seconds": cpu} for phase, (seconds, cpu) in self.outside.items()
            },
            "thread_seconds": self.thread_seconds(),
            "peak": {
                "gflops": self.peak.fp32,
                "gbs": self.peak.read,
                "gops_int16": self.peak.int16,
                "gops_int8": self.peak.int8,
            },
            "bottlenecks": bottlenecks,
        }


def shape_name(extents: Iterable[int] | None, weight: str, arithmetic: str) -> str:
    """A shape as people write it, "512x1536x576 q4_1 int16", the arithmetic only beside a weight's type."""
    if extents is None:
        return OTHER_SHAPES
    name = "x".join(map(str, extents))
    return f"{name} {weight} {arithmetic}" if weight else name


def merged(rows: Iterable[Row], key: Callable[[Row], Row]) -> list[Row]:
    """Rows whose `key`, a row with what tells them apart taken away, is the same but for its amounts, added up."""
    found: dict[Row, Row] = {}
    for row in rows:
        name = replace(key(row), calls=0, seconds=0.0, flops=0, bytes=0)
        sum_ = found.get(name, name)
        found[name] = replace(
            sum_,
            calls=sum_.calls + row.calls,
            seconds=sum_.seconds + row.seconds,
            flops=sum_.flops + row.flops,
            bytes=sum_.bytes + row.bytes,
        )
    return list(found.values())
