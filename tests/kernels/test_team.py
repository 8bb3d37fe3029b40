"""The team of threads that runs parallel regions, by a program in C of its own: plain, and under ThreadSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from entrenar._kernels import cpu

from .native import KERNELS, compiler

pytestmark = pytest.mark.skipif(not cpu.has_openmp(), reason="built for one thread")
# Without the library, so that a call which the team does not answer fails to link.
FLAGS = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wno-unknown-pragmas", "-pthread", "-I", str(KERNELS)]


def build(folder: Path, *more: str) -> Path:
    """The program, of the team and tests/kernels/team.c."""
    objects = []
    for source in (KERNELS / "team.c", Path(__file__).with_name("team.c")):
        objects.append(folder / f"{len(objects)}.o")
        subprocess.run([compiler(), *FLAGS, *more, "-fopenmp", "-c", source, "-o", objects[-1]], check=True)
    subprocess.run([compiler(), *FLAGS, *more, *objects, "-o", folder / "team"], check=True)
    return folder / "team"


@pytest.mark.unit
def test_regions_of_every_shape_hold(tmp_path: Path) -> None:
    def two_cpus() -> None:  # on which five threads that never sleep would take half a minute
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])

    run = subprocess.run(
        [build(tmp_path), "60"], capture_output=True, text=True, timeout=15, check=False, preexec_fn=two_cpus
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "ok\n", "")


def _without_random_addresses() -> list[str]:
    """What ThreadSanitizer of older compilers needs on newer kernels, where the machine grants it."""
    command = ["setarch", "-R"]
    granted = shutil.which(command[0]) and subprocess.run([*command, "true"], check=False).returncode == 0
    return command if granted else []


@pytest.mark.chaos
def test_no_two_threads_race(tmp_path: Path) -> None:
    try:
        program = build(tmp_path, "-fsanitize=thread")
    except subprocess.CalledProcessError:
        pytest.skip("this compiler has no ThreadSanitizer")
    run = subprocess.run(
        [*_without_random_addresses(), program, "8"],
        env=os.environ | {"TSAN_OPTIONS": "die_after_fork=0"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr[-3000:]) == (0, "ok\n", "")
