"""What this machine is and what it can do at most: a worker beside the two sides of every comparison."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import shutil
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from timing import clock

from entrenar._kernels import cpu
from entrenar.autograd.precision import effective_precision

V3 = ["-mavx2", "-mfma"]
V4 = [*V3, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"]
FLAGS = {"base": [], "v3": V3, "v4": V4, "v4i": [*V4, "-mavx512vnni", "-mavx512vbmi"]}
RATES = {"fp32": 0, "int16": 1, "int8": 2}
STREAMS = {"read": 0, "update": 1, "triad": 2}
STREAM_BYTES = 128 << 20  # of each array: beyond any cache
ROUNDS = 4_000_000  # of a rate: some 5 to 20 milliseconds
PACKAGES = ("entrenar", "numpy", "torch", "transformers", "peft", "bitsandbytes", "xllamacpp")


class Machine:
    """Peak rates in GFLOP/s (GOP/s for integers) and bandwidths in GB/s of all threads together."""

    def __init__(self) -> None:
        self.threads = cpu.get_num_threads()
        self.library = self._compile()
        self.arrays: list[np.ndarray] = []

    def _compile(self) -> ctypes.CDLL:
        """peak.c for the tier in use; openly fails where the compiler that built the package is gone."""
        names = [(sysconfig.get_config_var("CC") or "cc").split()[0], "cc", "gcc"]
        compiler = next(path for path in map(shutil.which, names) if path)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "peak.so")
            openmp = ["-fopenmp"] if cpu.has_openmp() else []
            source = str(Path(__file__).with_name("peak.c"))
            flags = ["-O3", "-std=gnu11", "-ffp-contract=fast", "-fPIC", "-shared", *openmp, *FLAGS[cpu.tier()]]
            subprocess.run([compiler, *flags, source, "-o", str(target)], check=True)
            library = ctypes.CDLL(str(target))
        ctypes.c_int.in_dll(library, "peak_uses_cpu_time").value = int(clock is time.process_time)
        library.peak_rate.restype = library.peak_bandwidth.restype = ctypes.c_double
        library.peak_rate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_double]
        library.peak_bandwidth.argtypes = [ctypes.c_int, ctypes.c_int, *[ctypes.c_void_p] * 3, ctypes.c_ssize_t]
        return library

    def peak(self, name: str, threads: int | None = None) -> float:
        """The best of three short measurements of a rate or a stream; 0 where the tier has no such instruction."""
        return max(self._measure(name, threads or self.threads) for _ in range(3))

    def _measure(self, name: str, threads: int) -> float:
        if name in RATES:
            return self.library.peak_rate(RATES[name], threads, ROUNDS)
        if not self.arrays:
            self.arrays = [np.full(STREAM_BYTES // 4, 0.5 + i, np.float32) for i in range(3)]
        pointers = [array.ctypes.data for array in self.arrays]
        return self.library.peak_bandwidth(STREAMS[name], threads, *pointers, STREAM_BYTES // 4)

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
