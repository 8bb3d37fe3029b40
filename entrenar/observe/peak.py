"""What this machine can do at most, measured: multiply-add rates and streams through memory, of the tier in use.

The figures are those of the moment: on a machine that others use too they are what is left of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from entrenar._kernels import cpu, peak

STREAM_BYTES = 128 << 20  # of each array: beyond any cache
ROUNDS = 4_000_000  # of a rate in one measurement: some 5 to 20 milliseconds
TRIES = 3  # the best of them counts
ALIGNMENT = 64  # bytes: of the widest vector


@dataclass(frozen=True)
class Peak:
    """Rates of `threads` threads together: operations in 1e9 a second (a multiply-add is two), reading in GB/s.

    A rate is 0 where the tier has no such instruction.
    """

    tier: str
    threads: int
    fp32: float
    int16: float
    int8: float
    read: float

    def best(self, other: Peak) -> Peak:
        """The larger of both, figure by figure: what others took of the machine in one measurement is left out."""
        names = (*peak.RATES, "read")
        return replace(self, **{name: max(getattr(self, name), getattr(other, name)) for name in names})


_measured: dict[tuple[str, int], Peak] = {}


def machine_peak(threads: int | None = None, again: bool = False) -> Peak:
    """The peak of `threads` threads (those of the kernels where None), in some tenths of a second.

    A process measures once for each tier and count; `again` measures once more, and keeps what is larger.
    """
    count = threads or cpu.get_num_threads()
    key = (cpu.tier(), count)
    if key not in _measured or again:
        y = aligned(STREAM_BYTES)
        fp32, int16, int8 = (max(rate(name, count) for _ in range(TRIES)) for name in peak.RATES)
        read = max(stream("read", count, y, y, y) for _ in range(TRIES))
        found = Peak(cpu.tier(), count, fp32, int16, int8, read)
        _measured[key] = found.best(_measured.get(key, found))
    return _measured[key]


def rate(name: str, threads: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """One measurement of multiply-adds ("fp32", "int16", "int8"), in 1e9 operations a second; 0 without them."""
    started = clock()
    done = peak.multiply_adds(name, threads, ROUNDS)
    return done / 1e9 / (clock() - started)


def stream(
    name: str,
    threads: int,
    x: np.ndarray,
    y: np.ndarray,
    z: np.ndarray,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """One measurement of a stream ("read" of y, "update" of x by y, "triad" of x = y + z / 2), in GB/s."""
    started = clock()
    moved = peak.stream(name, threads, x.ctypes.data, y.ctypes.data, z.ctypes.data, x.size)
    return moved / 1e9 / (clock() - started)


def aligned(nbytes: int) -> np.ndarray:
    """Float32 values in memory of their own, at an address that every vector may have."""
    raw = np.ones(nbytes // 4 + ALIGNMENT // 4, np.float32)
    start = -raw.ctypes.data % ALIGNMENT // 4
    return raw[start : start + nbytes // 4]
