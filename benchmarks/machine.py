"""What this machine is and what it can do at most: a worker beside the two sides of every comparison."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import numpy as np
from timing import clock

from entrenar._kernels import cpu
from entrenar._kernels.peak import RATES, STREAMS
from entrenar.autograd.precision import effective_precision
from entrenar.observe.peak import STREAM_BYTES, TRIES, aligned, rate, stream

PACKAGES = ("entrenar", "numpy", "torch", "transformers", "peft", "bitsandbytes", "xllamacpp")


class Machine:
    """Peak rates in GFLOP/s (GOP/s for integers) and bandwidths in GB/s of all threads together."""

    def __init__(self) -> None:
        self.threads = cpu.get_num_threads()
        self.arrays: list[np.ndarray] = []

    def peak(self, name: str, threads: int | None = None) -> float:
        """The best of three short measurements of a rate or a stream; 0 where the tier has no such instruction."""
        return max(self._measure(name, threads or self.threads) for _ in range(TRIES))

    def _measure(self, name: str, threads: int) -> float:
        if name in RATES:
            return rate(name, threads, clock)
        if not self.arrays:
            self.arrays = [aligned(STREAM_BYTES) for _ in range(3)]
        return stream(name, threads, *self.arrays, clock)

    def describe(self) -> dict[str, Any]:
        """Tier, threads, versions, and every peak, on one thread and on all."""
        versions = {}
        for package in PACKAGES:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                versions[package] = "not installed"
        peaks = {
            name: {count: max(self.peak(name, count) for _ in range(3)) for count in sorted({1, self.threads})}
            for name in (*RATES, *STREAMS)
        }
        self.arrays = []
        return {
            "cpu": _cpu_name(),
            "tier": cpu.tier(),
            "threads": self.threads,
            "precisions": {name: effective_precision(name) for name in ("highest", "high", "medium")},
            "python": platform.python_version(),
            "versions": versions,
            "peaks": peaks,
        }


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
