"""What the machine gives this process, sampled from /proc and /sys: throttling, pressure, faults, disk, heat, errors.

Sources: kernel documentation, admin-guide/cgroup-v2 and scheduler/sched-bwc (cpu.stat, cpu.max), accounting/psi,
admin-guide/iostats, filesystems/proc, admin-guide/pm/cpufreq, driver-api/edac; core_throttle_count of x86.
"""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from entrenar.observe.hardware import cgroup_folders

TICKS, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
SECTOR = 512  # bytes; of /proc/diskstats and a block device's stat, whatever the device has
THREADS_READ = 16  # whose waits for a CPU are read
CPUS_READ = 8  # whose frequencies and throttle counts are read: a sample stays short on machines of many
# What a source raises that is missing, or holds what no kernel writes: it is left out.
ODD = (OSError, ValueError, LookupError, ArithmeticError)
READ = 16384  # bytes of a file; /proc/vmstat needs the most
OWN = re.compile(r"(loop|ram|zram|fd|sr)\d+$|.*\dp\d+$|(sd|vd|xvd|hd)[a-z]+\d+$")  # no disks, or parts of others


class Resources:
    """Samples counters and levels; a source that the machine lacks is left out of the sample.

    `folder` is where the run writes: its disk is watched. `proc` and `sys` are where the trees are, `usage` gives what
    getrusage says of the whole process. Nothing here raises for a file that is missing or odd.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
        usage: Callable[[], resource.struct_rusage] = lambda: resource.getrusage(resource.RUSAGE_SELF),
    ) -> None:
        self.folder, self.usage = folder, usage
        self.proc = str(proc)
        cgroups, membership = sys / "fs/cgroup", proc / "self/cgroup"
        self._cpu_groups = cgroup_folders("cpu", cgroups, membership)
        self._memory_groups = cgroup_folders("memory", cgroups, membership)
        self._disk = _disk_of(folder, sys)
        cpus = sorted((sys / "devices/system/cpu").glob("cpu[0-9]*"), key=lambda path: int(path.name[3:]))[:CPUS_READ]
        self._frequencies = [str(path) for cpu in cpus for path in cpu.glob("cpufreq/scaling_cur_freq")]
        self._limits = [str(path) for cpu in cpus[:1] for path in cpu.glob("cpufreq/scaling_max_freq")]
        self._throttles = [str(path) for cpu in cpus for path in cpu.glob("thermal_throttle/core_throttle_count")]
        self._throttles += [str(p) for cpu in cpus[:1] for p in cpu.glob("thermal_throttle/package_throttle_count")]
        self._temperatures = [str(path) for path in sorted(sys.glob("class/thermal/thermal_zone*/temp"))[:CPUS_READ]]
        errors = sys / "devices/system/edac/mc"
        self._corrected = [str(path) for path in sorted(errors.glob("mc*/ce_count"))]
        self._uncorrected = [str(path) for path in sorted(errors.glob("mc*/ue_count"))]

    def sample(self) -> dict[str, float]:
        """The figures of now. Names that end in _total count up from any beginning; others are levels.

        Seconds, bytes, hertz and degrees Celsius; `time_seconds_total` is the clock by which rates are made.
        """
        found: dict[str, float] = {"time_seconds_total": time.monotonic()}
        for source in (
            *(self._process, self._scheduling, self._machine, self._pressure, self._throttling, self._memory),
            *(self._storage, self._processor),
        ):
            with suppress(*ODD):
                source(found)
        return found

    # ------------------------------------------------------------------ this process
    def _process(self, found: dict[str, float]) -> None:
        used = self.usage()
        found["process_cpu_seconds_total"] = used.ru_utime + used.ru_stime
        found["minor_faults_total"], found["major_faults_total"] = used.ru_minflt, used.ru_majflt
        found["voluntary_switches_total"], found["involuntary_switches_total"] = used.ru_nvcsw, used.ru_nivcsw
        found["resident_bytes"] = int(_read(f"{self.proc}/self/statm").split()[1]) * PAGE
        written = _value_of(_read(f"{self.proc}/self/io"), "write_bytes:")
        found["process_written_bytes_total"] = written

    def _scheduling(self, found: dict[str, float]) -> None:
        # of its first threads together: a step waits for whichever of them has no CPU
        threads = sorted(Path(self.proc, "self/task").iterdir(), key=lambda path: int(path.name))[:THREADS_READ]
        nanoseconds = sum(int(_read(thread / "schedstat").split()[1]) for thread in threads)
        found["run_delay_seconds_total"] = nanoseconds / 1e9

    # ------------------------------------------------------------------ the machine
    def _machine(self, found: dict[str, float]) -> None:
        text = _read(f"{self.proc}/stat")
        ticks = [int(word) for word in text.split("\n", 1)[0].split()[1:9]]
        user, nice, system, _, _, interrupts, soft, steal = ticks
        found["cpu_busy_seconds_total"] = (user + nice + system + interrupts + soft) / TICKS
        found["steal_seconds_total"] = steal / TICKS

    def _pressure(self, found: dict[str, float]) -> None:
        for kind in ("cpu", "memory", "io"):
            with suppress(*ODD):
                for line in _read(f"{self.proc}/pressure/{kind}").splitlines():
                    degree, *_, total = line.split()
                    microseconds = int(total.removeprefix("total="))
                    found[f"pressure_{kind}_{degree}_seconds_total"] = microseconds / 1e6

    def _throttling(self, found: dict[str, float]) -> None:
        """Of this process's cgroup and those above it: whichever has the lowest quota stops it."""
        for second, folder in self._cpu_groups:
            with suppress(*ODD):
                statistics = _read(f"{folder}/cpu.stat")
                throttled = _value_of(statistics, "throttled_usec") / 1e6 if second else None
                seconds = _value_of(statistics, "throttled_time") / 1e9 if throttled is None else throttled
                _add(found, "cgroup_throttled_seconds_total", seconds)
                _add(found, "cgroup_throttled_total", _value_of(statistics, "nr_throttled"))
            with suppress(*ODD):
                if second:
                    quota, period = _read(f"{folder}/cpu.max").split()
                else:
                    quota, period = _read(f"{folder}/cpu.cfs_quota_us"), _read(f"{folder}/cpu.cfs_period_us")
                if int(quota) > 0:  # "max", which is no number, and -1: no limit
                    cpus = int(quota) / int(period)
                    found["cgroup_cpu_limit"] = min(cpus, found.get("cgroup_cpu_limit", cpus))

    def _memory(self, found: dict[str, float]) -> None:
        for second, folder in self._memory_groups:
            with suppress(*ODD):
                hits = (
                    _value_of(_read(f"{folder}/memory.events"), "max") if second else _number(folder / "memory.failcnt")
                )
                _add(found, "cgroup_memory_limit_hits_total", hits)
        found["available_bytes"] = _value_of(_read(f"{self.proc}/meminfo"), "MemAvailable:") * 1024
        text = _read(f"{self.proc}/vmstat")
        found["swapped_in_pages_total"] = _value_of(text, "pswpin")
        found["swapped_out_pages_total"] = _value_of(text, "pswpout")

    def _storage(self, found: dict[str, float]) -> None:
        rows = [_read(self._disk).split()] if self._disk else self._all_disks()
        totals = [sum(int(row[column]) for row in rows) for column in range(8)]
        if rows:
            reads, _, read, reading, writes, _, written, writing = totals
            found["disk_requests_total"] = reads + writes
            found["disk_request_seconds_total"] = (reading + writing) / 1000
            found["disk_read_bytes_total"], found["disk_written_bytes_total"] = read * SECTOR, written * SECTOR
        if self.folder is not None:
            place = os.statvfs(self.folder)
            found["disk_free_bytes"] = place.f_bavail * place.f_frsize

    def _all_disks(self) -> list[list[str]]:
        lines = [line.split() for line in _read(f"{self.proc}/diskstats").splitlines()]
        return [words[3:] for words in lines if not OWN.match(words[2])]

    # ------------------------------------------------------------------ heat, speed and errors
    def _processor(self, found: dict[str, float]) -> None:
        for name, paths, join, unit in (
            ("cpu_frequency_hertz", self._frequencies, _mean, 1000.0),
            ("cpu_frequency_limit_hertz", self._limits, _mean, 1000.0),
            ("thermal_throttles_total", self._throttles, sum, 1.0),
            ("temperature_celsius", self._temperatures, max, 0.001),
            ("edac_corrected_total", self._corrected, sum, 1.0),
            ("edac_uncorrected_total", self._uncorrected, sum, 1.0),
        ):
            values = []
            for path in paths:
                with suppress(*ODD):
                    values.append(int(_read(path)))
            if values:
                found[name] = join(values) * unit


def difference(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What happened between two samples: counters by how far they went, without _total, and the levels of `after`.

    A counter that only one of them has is left out, as is one that went back (its cgroup or device was replaced).
    """
    found = {}
    for name, value in after.items():
        if not name.endswith("_total"):
            found[name] = value
        elif name in before and value >= before[name]:
            found[name.removesuffix("_total")] = value - before[name]
    return found


def _read(path: str | Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, READ).decode("ascii", errors="replace")
    finally:
        os.close(descriptor)


def _number(path: Path) -> int:
    return int(_read(path))


def _value_of(text: str, name: str) -> int:
    """The number after `name` at the beginning of a line; LookupError where there is none."""
    at = 0 if text.startswith(f"{name} ") else text.index(f"\n{name} ") + 1 if f"\n{name} " in text else -1
    if at < 0:
        raise LookupError(name)
    return int(text[at + len(name) :].split(None, 1)[0])


def _add(found: dict[str, float], name: str, value: float) -> None:
    found[name] = found.get(name, 0) + value


def _mean(values: Iterable[int]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)


def _disk_of(folder: Path | None, sys: Path) -> Path | None:
    """The statistics of the disk that holds `folder`; None where it is on none (a network, several disks)."""
    if folder is None or not folder.exists():
        return None
    device = folder.stat().st_dev
    path = sys / "dev/block" / f"{os.major(device)}:{os.minor(device)}" / "stat"
    return path if path.exists() else None
