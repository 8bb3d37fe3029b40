"""`entrenar analyze`: kinds of steps and anomalies of runs, watched and not, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from entrenar.cli.analyze import main
from tests.train.builders import run_entrenar

pytest.importorskip("sklearn")
pytestmark = pytest.mark.unit


def write_run(folder: Path, *, watched: bool, slow: dict[int, float] | None = None, steps: int = 120) -> Path:
    """The metrics of a run whose every tenth step has a slow data phase, and that is slower in `slow`."""
    rng = np.random.default_rng(0)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            factor = (slow or {}).get(step, 1.0)
            data = 0.6 if step % 10 == 0 else 0.05
            forward, backward = (base * factor * rng.uniform(0.98, 1.02) for base in (0.4, 0.8))
            seconds = data + forward + backward
            row = {"step": step, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 1e-3, "tokens": 512}
            row |= {"seconds": seconds, "phases": {"data": data, "forward": forward, "backward": backward}}
            if watched:
                usual = {"process_cpu_seconds": 1.9 * seconds, "cgroup_cpu_limit": 1.5, "time_seconds": seconds}
                row["resources"] = usual | ({"cgroup_throttled_seconds": 1.8} if factor > 1 else {})
            file.write(json.dumps(row) + "\n")
    return folder


def test_kinds_of_steps_and_a_slow_one_with_its_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = main([str(write_run(tmp_path, watched=True, slow={77: 3.0})), "--json"])
    assert json.loads(capsys.readouterr().out) == table
    assert table["watched"] and table["silhouette"] > 0.5
    assert table["high_latency_steps"] == [77]
    (found,) = [each for each in table["anomalies"] if each["step"] == 77]
    assert (found["kind"], found["severity"]) == ("slow_step", "high")
    assert found["causes"] == ["the cgroup was throttled for 1.8 s (cpu.max 150 %)"]


def test_the_high_latency_cluster_is_every_tenth_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = main([str(write_run(tmp_path, watched=False))])
    assert table["high_latency_steps"] == list(range(10, 121, 10))
    assert [each["steps"] for each in table["clusters"]] == [108, 12]
    shown = capsys.readouterr().out
    assert "(high latency)" in shown and "High-latency steps: 10, 20, 30" in shown
    assert "The run was not watched (--monitor), so that causes are unknown." in shown


def test_a_run_without_kinds_is_one_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, watched=False, steps=9)
    table = main([str(tmp_path / "metrics.jsonl")])
    assert len(table["clusters"]) == 1 and table["anomalies"] == [] and table["silhouette"] is None
    assert "No anomalies." in capsys.readouterr().out


def test_what_the_monitor_recorded_is_listed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"step": 5, "time": 1.0, "kind": "edac", "severity": "high", "z": 9.0, "value": 1.0, "expected": 0.0}
    row |= {"operation": "corrected", "causes": ["x"], "sentence": "step 5: [errors]", "ended": 7}
    write_run(tmp_path, watched=True)
    (tmp_path / "anomalies.jsonl").write_text(json.dumps(row) + "\n")
    assert main([str(tmp_path)])["anomalies"] == [row]
    assert "step 5: [errors] (over at step 7)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("", "holds no step"),
        ("{}\n", "line 1 is no step of a run (it has no key 'seconds')"),
        ("[1]\n", "line 1 is no step of a run"),
        ('{"step": 1, "seconds": NaN, "loss": 1, "grad_norm": 1, "tokens": 1}\n', "not finite"),
        ("\x00", "line 1 is no step of a run"),
    ],
)
def test_what_is_no_run_is_refused_with_a_sentence(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    done = run_entrenar("analyze", tmp_path)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1


def test_a_verified_step_is_no_slow_one(tmp_path: Path) -> None:
    write_run(tmp_path, watched=False, slow={77: 3.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for row in lines[6::7]:
        row["seconds"] += 60.0
        row["phases"]["verify"] = 60.0
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    table = main([str(tmp_path), "--json"])
    assert [each["step"] for each in table["anomalies"]] == [77]
    assert table["high_latency_steps"] == [77]


@pytest.mark.parametrize("verb", ["analyze", "report"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"z": None}, "z is null, expected a number"),
        ({"z": "a"}, "z is 'a', expected a number"),
        ({"step": "x"}, "step is 'x', expected an integer"),
        ({"ended": 1.5}, "ended is 1.5, expected an integer"),
        ({"severity": "huge"}, "severity is 'huge'; did you mean 'high'?"),
        ({"sentence": None}, "sentence is null, expected text"),
        ({"causes": "abc"}, "causes is 'abc', expected a list"),
        ({"more": 1}, "anomaly.more is no known key"),
        ({"kind": ...}, "anomaly.kind is missing"),
    ],
)
def test_a_damaged_record_of_an_anomaly_is_named_by_its_line(
    verb: str, changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    row = {"step": 5, "time": 1.0, "kind": "edac", "severity": "high", "z": 9.0, "value": None, "expected": 0.0}
    row |= {"operation": None, "causes": ["x"], "sentence": "step 5: errors", "ended": 7}
    damaged = {key: value for key, value in (row | changes).items() if value is not ...}
    write_run(tmp_path, watched=True)
    (tmp_path / "anomalies.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(damaged) + "\n")
    done = run_entrenar(verb, tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "anomalies.jsonl: line 2 is no anomaly" in done.stderr and message in done.stderr
