"""The sampler of the machine: trees of both versions of cgroups, odd files, none at all, and this machine."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from entrenar.observe.resources import Resources, difference

pytestmark = pytest.mark.unit

PROC = {
    "self/statm": "1000 500 100 1 0 200 0\n",
    "self/io": "rchar: 1\nwchar: 2\nwrite_bytes: 4096\ncancelled_write_bytes: 7\n",
    "self/task/7/schedstat": "5000000000 2000000000 9\n",
    "self/task/12/schedstat": "5000000000 500000000 9\n",
    "stat": "cpu  100 20 30 400 50 1 2 300 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n",
    "pressure/cpu": "some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0.00 avg60=0.00 total=0\n",
    "pressure/memory": "some avg10=1.00 avg60=0.00 avg300=0.00 total=2000000\nfull avg10=0.0 total=1000000\n",
    "meminfo": "MemTotal: 100 kB\nMemFree:   20 kB\nMemAvailable:   50 kB\n",
    "vmstat": "nr_free_pages 1\npswpin 3\npswpout 4\n",
    "diskstats": "   7 0 loop0 9 9 9 9 9 9 9 9 0 0 0\n"
    "   8 0 sda 10 0 20 30 40 0 60 70 0 0 0\n   8 1 sda1 10 0 20 30 40 0 60 70 0 0 0\n"
    " 259 0 nvme0n1 1 0 2 3 4 0 6 7 0 0 0\n 259 1 nvme0n1p1 1 0 2 3 4 0 6 7 0 0 0\n",
}
SYS = {
    "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1800000\n",
    "devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2200000\n",
    "devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "3000000\n",
    "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
    "devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4\n",
    "devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "5\n",
    "class/thermal/thermal_zone0/temp": "45000\n",
    "class/thermal/thermal_zone1/temp": "93500\n",
    "devices/system/edac/mc/mc0/ce_count": "2\n",
    "devices/system/edac/mc/mc0/ue_count": "1\n",
}
V2 = {
    "fs/cgroup/a/b/cpu.stat": "usage_usec 1\nnr_periods 10\nnr_throttled 3\nthrottled_usec 1800000\n",
    "fs/cgroup/a/b/cpu.max": "max 100000\n",
    "fs/cgroup/a/cpu.stat": "usage_usec 1\nnr_throttled 1\nthrottled_usec 200000\n",
    "fs/cgroup/a/cpu.max": "150000 100000\n",
    "fs/cgroup/a/b/memory.events": "low 0\nhigh 0\nmax 6\noom 0\n",
}
V1 = {
    "fs/cgroup/cpu/a/b/cpu.stat": "nr_periods 10\nnr_throttled 4\nthrottled_time 2000000000\n",
    "fs/cgroup/cpu/a/b/cpu.cfs_quota_us": "50000\n",
    "fs/cgroup/cpu/a/b/cpu.cfs_period_us": "100000\n",
    "fs/cgroup/cpu/a/cpu.cfs_quota_us": "-1\n",
    "fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
    "fs/cgroup/memory/a/b/memory.failcnt": "8\n",
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def usage() -> resource.struct_rusage:
    return resource.struct_rusage((1.5, 0.5, 0, 0, 0, 0, 7, 2, 0, 0, 0, 0, 0, 0, 11, 12))


def sampler(root: Path, *, version: int = 2, folder: Path | None = None) -> Resources:
    member = "0::/a/b\n" if version == 2 else "3:cpu,cpuacct:/a/b\n2:memory:/a/b\n0::/\n"
    write(root / "proc", {**PROC, "self/cgroup": member})
    write(root / "sys", {**SYS, **(V2 if version == 2 else V1)})
    return Resources(folder, proc=root / "proc", sys=root / "sys", usage=usage)


def test_every_source_is_read(tmp_path: Path) -> None:
    found = sampler(tmp_path, folder=tmp_path).sample()
    expected = {
        "process_cpu_seconds_total": 2.0,
        "minor_faults_total": 7,
        "major_faults_total": 2,
        "voluntary_switches_total": 11,
        "involuntary_switches_total": 12,
        "process_written_bytes_total": 4096,
        "run_delay_seconds_total": 2.5,
        "pressure_cpu_some_seconds_total": 1.5,
        "pressure_memory_full_seconds_total": 1.0,
        "cgroup_throttled_total": 4,
        "cgroup_throttled_seconds_total": 2.0,
        "cgroup_cpu_limit": 1.5,
        "cgroup_memory_limit_hits_total": 6,
        "available_bytes": 50 * 1024,
        "swapped_in_pages_total": 3,
        "swapped_out_pages_total": 4,
        "disk_requests_total": 55,
        "disk_request_seconds_total": 0.11,
        "disk_read_bytes_total": 22 * 512,
        "disk_written_bytes_total": 66 * 512,
        "cpu_frequency_hertz": 2e9,
        "cpu_frequency_limit_hertz": 3e9,
        "thermal_throttles_total": 12,
        "temperature_celsius": 93.5,
        "edac_corrected_total": 2,
        "edac_uncorrected_total": 1,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["steal_seconds_total"] * 153 == pytest.approx(found["cpu_busy_seconds_total"] * 300)
    assert found["disk_free_bytes"] > 0 and found["resident_bytes"] > 0
    assert all(type(value) in (int, float) for value in found.values())


def test_cgroups_of_version_1(tmp_path: Path) -> None:
    found = sampler(tmp_path, version=1).sample()
    assert (found["cgroup_throttled_total"], found["cgroup_throttled_seconds_total"]) == (4, 2.0)
    assert (found["cgroup_cpu_limit"], found["cgroup_memory_limit_hits_total"]) == (0.5, 8)


def test_a_machine_without_any_source_has_what_the_system_calls_say(tmp_path: Path) -> None:
    found = Resources(proc=tmp_path / "proc", sys=tmp_path / "sys", usage=usage).sample()
    assert (
        "major_faults_total" in found and "cpu_busy_seconds_total" not in found and "edac_corrected_total" not in found
    )


@pytest.mark.parametrize("text", ["", "\n", "x", "cpu", "some total=", "\x00\xff", "max", "-1 -1", "1 0", "9" * 5000])
def test_odd_files_leave_a_source_out(tmp_path: Path, text: str) -> None:
    watched = sampler(tmp_path)
    for path in [*tmp_path.rglob("*")]:
        if path.is_file():
            path.write_text(text, encoding="latin-1")
    found = watched.sample()
    assert found["major_faults_total"] == 2
    assert all(type(value) in (int, float) for value in found.values())


def test_a_difference_has_what_happened_between() -> None:
    before = {"major_faults_total": 5.0, "gone_total": 1.0, "back_total": 9.0, "resident_bytes": 1.0}
    after = {"major_faults_total": 7.0, "new_total": 4.0, "back_total": 2.0, "resident_bytes": 3.0}
    assert difference(before, after) == {"major_faults": 2.0, "resident_bytes": 3.0}


def test_this_machine_gives_numbers_that_do_not_go_back(tmp_path: Path) -> None:
    watched = Resources(tmp_path)
    first, second = watched.sample(), watched.sample()
    assert {"process_cpu_seconds_total", "resident_bytes", "available_bytes", "disk_free_bytes"} <= first.keys()
    counters = {name for name in first if name.endswith("_total")}
    assert {name.removesuffix("_total") for name in counters} <= difference(first, second).keys()
