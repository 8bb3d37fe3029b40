"""Change points: planted slowdowns and series without one, over many fixed seeds; histories of benchmarks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.errors import FormatError
from entrenar.observe.changes import changes, level_of, scores
from entrenar.observe.history import TOGETHER, find, read_history
from tests.train.builders import ROOT

pytestmark = pytest.mark.unit
SIDE = 20
KNOWN, UNKNOWN = [SIDE], list(range(1, 2 * SIDE))
SLOWDOWN = float(np.log(1.05))
Draw = Callable[[np.random.Generator], np.ndarray]


def deviation(rng: np.random.Generator, repetitions: int = 7) -> np.ndarray:
    """A run whose repetitions have noise of 10 % (standard deviation)."""
    return np.log(1 + 0.1 * rng.standard_normal(repetitions).clip(-5, 5))


def width(rng: np.random.Generator) -> np.ndarray:
    """A run with one repetition, somewhere in a range of 10 %."""
    return np.log(1 + rng.uniform(-0.05, 0.05, 1))


def machine(rng: np.random.Generator) -> np.ndarray:
    """Ratios of two sides on a machine whose speed has noise of 10 %, 3 % each besides."""
    speed = 1 + 0.1 * rng.standard_normal(7).clip(-5, 5)
    mine, theirs = (speed * (1 + 0.03 * rng.standard_normal(7)) for _ in range(2))
    return np.log(mine / theirs)


def rate(draw: Draw, places: list[int], slowdown: float, trials: int) -> float:
    """The share of series of 20 and 20 runs in which something became slower."""
    found = 0
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        runs = [draw(rng) + slowdown * (run >= SIDE) for run in range(2 * SIDE)]
        found += any(change.size > 0 for change in changes(runs, places))
    return found / trials


@pytest.mark.parametrize(
    ("draw", "places", "least"),
    [
        (deviation, KNOWN, 0.75),
        (deviation, UNKNOWN, 0.5),
        (width, KNOWN, 0.9),
        (width, UNKNOWN, 0.85),
        (machine, KNOWN, 1.0),
        (machine, UNKNOWN, 1.0),
    ],
)
def test_a_slowdown_of_5_percent_is_found_in_this_share_of_series(draw: Draw, places: list[int], least: float) -> None:
    assert rate(draw, places, SLOWDOWN, 40) >= least


@pytest.mark.parametrize("places", [KNOWN, UNKNOWN])
@pytest.mark.parametrize("draw", [deviation, width, machine, lambda rng: deviation(rng, 1)])
def test_series_without_a_change_stay_quiet(draw: Draw, places: list[int]) -> None:
    assert rate(draw, places, 0.0, 100) <= 0.01


def test_size_place_and_direction_of_two_changes() -> None:
    rng = np.random.default_rng(0)
    levels = np.repeat([0.0, -0.2, 0.1], 15)
    found = changes([level + 0.5 * deviation(rng) for level in levels], range(1, 45))
    assert [change.first for change in found] == [15, 30]
    for change, size in zip(found, (-0.2, 0.3), strict=True):
        assert change.interval[0] <= size <= change.interval[1] and abs(change.size - size) < 0.05
        assert change.places[0] <= change.first <= change.places[1] and change.p < 0.0025


def test_a_run_that_stands_out_is_no_change() -> None:
    rng = np.random.default_rng(1)
    runs = [deviation(rng) for _ in range(30)]
    runs[20] = runs[20] + 5
    assert changes(runs, range(1, 30)) == []


@pytest.mark.parametrize("runs", [[], [1.0], [1.0] * 40, [1.0, 2.0] * 2, [1.0, 1.0, 1.0, 9.0, 9.0, 9.0]])
def test_what_cannot_be_told_raises_nothing(runs: list[float]) -> None:
    assert changes([np.array([value]) for value in runs], range(1, len(runs))) == []


def test_equal_values_share_a_rank() -> None:
    found = scores([np.array([1.0, 1.0]), np.array([1.0]), np.array([2.0, 3.0])])
    assert found[0] == pytest.approx(found[1]) and found[2] > found[0]
    assert found.sum() == pytest.approx(0)


def test_more_series_are_judged_more_strictly() -> None:
    assert level_of(0) == level_of(20) == 0.0025 and level_of(100) == pytest.approx(0.0005)


# ---------------------------------------------------------------------- histories
def line(commit: int, hour: int, values: list[float], **changed: Any) -> str:
    date = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(hours=hour)
    row = {"commit": f"c{commit:02}", "date": date.isoformat(), "cpu": "x", "tier": "v4i", "threads": 2}
    row |= {"packages": {"torch": "1", "entrenar": str(commit)}, "entry": "step", "case": "a", "unit": "x"}
    return json.dumps(row | {"quick": False, "cpu_time": False, "lower": False, "values": values} | changed) + "\n"


def history(path: Path, cases: int, slower: dict[str, float], *, runs: int = 10, repetitions: int = 7) -> Path:
    """Two commits, so many runs of each, and cases of an entry, of which some become slower with the second."""
    rng = np.random.default_rng(3)
    with path.open("w") as file:
        for run in range(2 * runs):
            for case in map(str, range(cases)):
                cost = 1 + slower.get(case, 0.0) * (run >= runs)
                values = (2 / cost * np.exp(deviation(rng, repetitions))).tolist()
                file.write(line(run // runs, run, values, case=case))
    return path


def test_a_slower_case_is_named_with_its_commit_and_size(tmp_path: Path) -> None:
    table = find(read_history(history(tmp_path / "h", 3, {"1": 0.3})))
    (found,) = [row for row in table["slower"] if row["case"] != TOGETHER]
    assert (found["entry"], found["case"], found["commit"], found["last_before"]) == ("step", "1", "c01", "c00")
    assert found["interval"][0] < 0.3 < found["interval"][1] and found["confidence"] > 0.9975
    assert found["runs"] == [10, 10] and (table["series"], table["judged"], table["runs"]) == (3, 3, 20)


def test_what_each_case_hides_is_found_in_all_together(tmp_path: Path) -> None:
    slower = {str(case): 0.05 for case in range(12)}
    table = find(read_history(history(tmp_path / "h", 12, slower, runs=20, repetitions=1)))
    assert [row["case"] for row in table["slower"]] == [TOGETHER]
    assert table["slower"][0]["interval"][0] < 0.05 < table["slower"][0]["interval"][1]


def test_twenty_cases_without_a_change_stay_quiet(tmp_path: Path) -> None:
    assert find(read_history(history(tmp_path / "h", 20, {}, runs=20)))["changes"] == []


def test_what_became_faster_is_no_regression(tmp_path: Path) -> None:
    table = find(read_history(history(tmp_path / "h", 1, {"0": -0.3})))
    assert table["slower"] == [] and [row["slower"] for row in table["changes"]] == [False]


def test_more_memory_is_worse_and_values_below_zero_are_differences(tmp_path: Path) -> None:
    text = "".join(line(n // 9, n, [100.0 + 20 * (n // 9)], lower=True, unit="MiB") for n in range(18))
    text += "".join(line(n // 9, n, [-1.0 + 3 * (n // 9)], lower=True, unit="%", case="b") for n in range(18))
    (tmp_path / "h").write_text(text)
    found = {row["case"]: row for row in find(read_history(tmp_path / "h"))["slower"]}
    assert found["a"]["size"] == pytest.approx(0.2) and found["a"]["relative"]
    assert found["b"]["size"] == pytest.approx(3) and not found["b"]["relative"]


def test_a_commit_measured_again_stands_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "h").write_text(line(0, 0, [1.0]) + line(1, 1, [1.0]) + line(0, 2, [1.0]))
    (series,) = read_history(tmp_path / "h")
    assert [sample.commit for sample in series.samples] == ["c00", "c00", "c01"] and series.places() == [2]


@pytest.mark.parametrize("change", [{"cpu": "y"}, {"threads": 4}, {"packages": {"torch": "2"}}, {"quick": True}])
def test_other_machines_and_peers_are_other_series(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / "h").write_text(line(0, 0, [1.0]) + line(1, 1, [1.0], **change))
    assert len(read_history(tmp_path / "h")) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "holds no result"),
        (line(0, 0, [1.0])[:-9], "line 1 is no result of a benchmark"),
        (line(0, 0, [1.0]) + "{}\n", "line 2 is no result of a benchmark (it has no key 'values')"),
        (line(0, 0, []), "no finite numbers"),
        (line(0, 0, [float("nan")]), "no finite numbers"),
        (line(0, 0, [1.0], date="2026-01-01"), "a date without its zone"),
        (line(0, 0, [1.0], lower="yes"), "neither true nor false"),
        ("[]\n", "line 1 is no result"),
    ],
)
def test_what_is_no_history_is_one_sentence(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "h").write_text(content)
    with pytest.raises(FormatError) as raised:
        read_history(tmp_path / "h")
    assert message in str(raised.value)


def test_results_of_a_benchmark_are_kept_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("harness", "history"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from harness import Row, Target  # type: ignore[import-not-found]
    from history import keep  # type: ignore[import-not-found]

    rows = [Row("step", "a", [2.0, 2.1]), Row("load", "b", [3.0], "s"), Row("memory", "c", [0.5], less=True)]
    rows.append(Row("weights", "d", [1.0], target=Target(1.1, at_most=True)))
    machine = {"cpu": "x", "tier": "v4i", "threads": 2, "versions": {"torch": "2"}}
    table = [{name: getattr(row, name) for name in ("entry", "case", "unit", "lower", "values")} for row in rows]
    results = {"machine": machine, "quick": False, "cpu_time": False, "rows": table}
    for of in ("c0", "c1+"):
        assert keep(tmp_path / "h", results, of) == 4
    found = read_history(tmp_path / "h")
    assert [(each.entry, each.lower) for each in found] == [
        *[("step", False), ("load", True), ("memory", True), ("weights", True)]
    ]
    assert [sample.commit for sample in found[0].samples] == ["c0", "c1+"]
    assert found[0].samples[0].values.tolist() == pytest.approx((-np.log([2.0, 2.1])).tolist())
