"""Energy from RAPL's counters: sums over packages, counters that wrap, and machines without them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from entrenar.observe.energy import Energy
from entrenar.train import StepReport
from entrenar.train.report import steps


def package(powercap: Path, name: str, microjoules: object, most: int = 1000) -> None:
    folder = powercap / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")


@pytest.mark.unit
def test_packages_are_summed_and_their_parts_are_not(tmp_path: Path) -> None:
    for name, value in (("intel-rapl:0", 100), ("intel-rapl:1", 5), ("intel-rapl:0:0", 50), ("dtpm", 3)):
        package(tmp_path, name, value)
    energy = Energy(tmp_path)
    assert energy.joules() == 0
    package(tmp_path, "intel-rapl:0", 700)
    package(tmp_path, "intel-rapl:0:0", 900)
    assert energy.joules() == pytest.approx(600e-6)
    package(tmp_path, "intel-rapl:0", 100)  # past its range
    package(tmp_path, "intel-rapl:1", 25)
    assert energy.joules() == pytest.approx(1020e-6)


@pytest.mark.unit
@pytest.mark.parametrize("left", ["nothing", "no number", "gone later"])
def test_without_counters_there_is_no_figure(left: str, tmp_path: Path) -> None:
    if left != "nothing":
        package(tmp_path, "intel-rapl:0", "none" if left == "no number" else 3)
    energy = Energy(tmp_path / "absent" if left == "nothing" else tmp_path)
    if left == "gone later":
        (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert energy.joules() is None and energy.joules() is None


@pytest.mark.unit
def test_time_and_energy_that_are_left_are_said_after_three_steps(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 0, 10**12)
    out = io.StringIO()
    with steps(Console(file=out, width=200), 103, 0, Energy(tmp_path)) as show:
        for step in range(1, 4):
            package(tmp_path, "intel-rapl:0", step * 36_000_000, 10**12)
            show(StepReport(step, 1.0, 0.1, 1.0, 10, 5, 7.2))
    line = next(line for line in out.getvalue().splitlines() if line.startswith("step 3/103"))
    assert "720 s left" in line and "36.0 J a step, 1.0 Wh left" in line
    out = io.StringIO()
    with steps(Console(file=out, width=200), 103, 0, Energy(tmp_path / "none")) as show:
        show(StepReport(1, 1.0, 0.1, 1.0, 10, 5, 7.2))
    assert "left" in out.getvalue() and "J a step" not in out.getvalue()
