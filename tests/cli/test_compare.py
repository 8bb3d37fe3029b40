"""`entrenar compare`: runs that are the same to the bit, that differ in every way, and folders that are none."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from entrenar.cli.compare import main
from entrenar.errors import FormatError
from entrenar.train.config import Training
from tests.observe.test_changes import history
from tests.train.builders import SMALL, config_for, quiet, run_entrenar

pytestmark = pytest.mark.unit
FIGURES = ("calls", "gflops", "gbs")  # of a row of profile.json, besides its seconds


def trained(model: Path, data: Path, folder: Path, training: Training = SMALL, **observe: Any) -> Path:
    config = config_for(data, folder, training)
    quiet(model, replace(config, observe=replace(config.observe, **observe)))
    return folder


@pytest.fixture(scope="module")
def run(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    training = replace(SMALL, steps=8)
    return trained(model, data, tmp_path_factory.mktemp("runs") / "a", training, profile=True)


def copied(run: Path, folder: Path) -> Path:
    shutil.copytree(run, folder)
    return folder


def edit(folder: Path, change: Any) -> None:
    """Apply `change` to every step of a run."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def compared(first: Path, second: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, dict[str, Any]]:
    """The exit status and what --json prints."""
    status: Any = 0
    try:
        main([*flags, str(first), str(second), "--json"])
    except SystemExit as ended:
        status = ended.code
    return status, json.loads(capsys.readouterr().out)


def test_a_run_again_has_the_same_bits(
    run: Path, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = trained(model, data, tmp_path / "b", replace(SMALL, steps=8))
    status, table = compared(run, again, capsys, "--loss-tolerance", "0", "--speed-tolerance", "1e9")
    assert (status, table["beyond"]) == (0, [])
    assert [row["key"] for row in table["configuration"]] == ["observe.profile"]
    assert table["bits"] == {"same": True} and table["common_steps"] == 8
    assert [(row["file"], row["same"]) for row in table["files"]] == [("adapter/adapter_model.safetensors", True)]
    assert table["loss"]["relative"] == 0 and [row["relative"] for row in table["held_out"]] == [0, 0]
    assert table["kernels"] is None and {row["phase"] for row in table["phases"]} >= {"forward", "backward"}


def test_another_learning_rate_is_named_with_the_first_step_that_differs(
    run: Path,
    model: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = trained(model, data, tmp_path / "b", replace(SMALL, steps=6, learning_rate=3e-2), profile=True)
    status, table = compared(run, other, capsys, "--loss-tolerance", "1e-9", "--speed-tolerance", "1e9")
    assert status == 3 and "the held-out loss after is" in "; ".join(table["beyond"])
    assert table["steps"] == [8, 6] and table["common_steps"] == 6
    assert table["bits"]["step"] > 1 and not table["bits"]["same"]
    assert not table["files"][0]["same"]
    assert table["kernels"] and {row["key"] for row in table["configuration"]} == {
        *("training.learning_rate", "training.steps")
    }
    monkeypatch.setenv("COLUMNS", "200")
    main([str(run), str(other), "--loss-tolerance", "1e9", "--speed-tolerance", "1e9"])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"from step {table['bits']['step']} on: " in printed
    assert "Within the tolerance" in printed and "kernel" in printed


def test_settings_come_from_the_checkpoint_and_the_summary(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = copied(run, tmp_path / "a"), copied(run, tmp_path / "b")
    state = {"dict": [["fingerprint", {"dict": [["training.seed", {"value": 5}], ["x", {"list": [{"value": 1}]}]]}]]}
    for folder, values in ((run, {}), (other, {"configuration": {"training": {"lr": "[1]"}}})):
        table = json.loads((folder / "summary.json").read_text()) | {"configuration": {}, "fingerprint": {}} | values
        (folder / "summary.json").write_text(json.dumps(table))
    (other / "checkpoint" / "step-8").mkdir(parents=True, exist_ok=True)
    (other / "checkpoint" / "step-8" / "state.json").write_text(json.dumps(state))
    _, found = compared(run, other, capsys, "--speed-tolerance", "1e9")
    rows = {row["key"]: (row["first"], row["second"]) for row in found["configuration"]}
    assert rows["training.seed"][1] == 5 and rows["x"] == ("absent", [1])
    assert rows["training.lr"] == ("absent", "[1]")
    main([str(run), str(other), "--speed-tolerance", "1e9"])
    assert "'[1]'" in capsys.readouterr().out


def test_a_kernel_in_another_arithmetic_is_set_against_the_first(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders, arithmetic = [copied(run, tmp_path / name) for name in "ab"], ("int16", "int8")
    for folder, name, seconds in zip(folders, arithmetic, (6.0, 3.0), strict=True):
        rows = [{"kernel": "linear_forward", "shape": f"8x8x8 nf4 {name}", "seconds": seconds}]
        rows += [{"kernel": "rope", "shape": "8x2x4", "seconds": 1.0}]
        rows += [{"kernel": "linear_forward", "shape": "8x8x8 nf4 fp32", "seconds": 2.0}]
        rows += [{"kernel": "swiglu", "shape": "8", "seconds": 9.0}] * (name == "int8")
        rows += [{"kernel": "b", "shape": f"8 {last}", "seconds": 0.1} for last in ("int8", "fp32") if name == "int8"]
        table = {"first_step": 1, "last_step": 2, "kernels": [row | dict.fromkeys(FIGURES, 1) for row in rows]}
        (folder / "profile.json").write_text(json.dumps(table))
    _, found = compared(*folders, capsys)
    assert [(row["shape"], row["first"], row["second"], row["ratio"]) for row in found["kernels"]] == [
        ("8", None, 4.5, None),
        ("8x8x8 nf4 int16 / int8", 3.0, 1.5, 0.5),
        *[(shape, None, 0.05, None) for shape in ("8 int8", "8 fp32")],
        ("8x2x4", 0.5, 0.5, 1.0),
        ("8x8x8 nf4 fp32", 1.0, 1.0, 1.0),
    ]


@pytest.mark.parametrize(
    ("factor", "flags", "status"), [(1.2, (), 3), (1.2, ("--speed-tolerance", "0.3"), 0), (1.04, (), 0), (0.5, (), 0)]
)
def test_speed_is_judged_against_its_tolerance(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: float, flags: tuple[str, ...], status: int
) -> None:
    other = copied(run, tmp_path / "b")
    edit(other, lambda row: row.update(seconds=row["seconds"] * factor))
    found, table = compared(run, other, capsys, *flags)
    assert found == status and table["speed"]["paired"]
    assert table["speed"]["ratio"] == pytest.approx(factor)
    assert bool(table["beyond"]) == (status == 3)


def test_what_lies_within_the_noise_is_not_judged(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, factors = copied(run, tmp_path / "b"), [0.5, 2.0, 0.6, 1.8, 1.2, 1.1, 0.7, 1.9]
    edit(other, lambda row: row.update(seconds=row["seconds"] * factors[row["step"] - 1]))
    status, table = compared(run, other, capsys)
    assert status == 0 and "within the noise" in table["undecided"][0]


def test_other_tokens_are_compared_per_token(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = copied(run, tmp_path / "b")
    edit(other, lambda row: row.update(seconds=row["seconds"] * 2, tokens=row["tokens"] * 2))
    status, table = compared(run, other, capsys)
    assert status == 0 and not table["speed"]["paired"] and table["speed"]["ratio"] == pytest.approx(1)


def test_few_steps_and_other_examples_are_not_judged(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copied(run, tmp_path / "b")
    lines = (other / "metrics.jsonl").read_text().splitlines(keepends=True)
    (other / "metrics.jsonl").write_text("".join(lines[:3]))
    table = json.loads((other / "summary.json").read_text())
    table["held_out"]["after"] = {"loss": 99.0, "tokens": 1}
    (other / "summary.json").write_text(json.dumps(table))
    status, found = compared(run, other, capsys)
    assert status == 0 and len(found["undecided"]) == 2
    assert "other examples" in found["undecided"][0] and "3 steps in common" in found["undecided"][1]


# ---------------------------------------------------------------------- a history of benchmarks
def test_what_became_slower_is_named(tmp_path: Path) -> None:
    path = history(tmp_path / "h", 2, {"1": 0.3})
    done = run_entrenar("compare", "--history", path, "--json")
    assert (done.returncode, done.stderr) == (3, "")
    assert json.loads(done.stdout)["slower"][0]["commit"] == "c01"
    done = run_entrenar("compare", "--history", path)
    assert done.returncode == 3 and "Became slower, or takes more: step: 1 at c01" in done.stdout


def test_nothing_became_slower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--history", str(history(tmp_path / "h", 2, {}))])
    assert capsys.readouterr().out.endswith("Nothing became slower.\n")
    main(["--history", str(history(tmp_path / "h", 2, {}, runs=2))])
    assert "Not judged: 2 series without 3 runs" in capsys.readouterr().out


# ---------------------------------------------------------------------- wrong use
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", None, "cannot be read"),
        ("metrics.jsonl", '{"step": 1, "loss"', "line 1 is no step of a run"),
        ("summary.json", None, "cannot be read (No such file"),
        ("summary.json", '{"run": "x", ', "cannot be read"),
        ("summary.json", "[]", "no table"),
        ("summary.json", '{"held_out": {"after": 3}}', "its held_out is damaged"),
        ("summary.json", '{"held_out": {"after": {"loss": NaN, "tokens": 1}}}', "not finite"),
        ("profile.json", '{"kernels": [', "cannot be read"),
        ("profile.json", '{"kernels": [{}], "first_step": 1, "last_step": 2}', "is no profile of a run"),
        ("adapter/adapter_model.safetensors", "short", "is truncated, damaged or no safetensors file"),
    ],
)
def test_what_is_no_run_is_one_sentence(
    run: Path, tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    other = copied(run, tmp_path / "b")
    (other / name).unlink()
    if content is not None:
        (other / name).write_text(content)
    with pytest.raises(FormatError, match=re.escape(message)):
        main([str(run), str(other)])


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "0 runs are given; expected two output folders."),
        (["x"], 2, "1 runs are given; expected two output folders."),
        (["x", "y", "z"], 2, "3 runs are given; expected two output folders."),
        (["x", "y", "--speed-tolerance", "-1"], 1, "speed_tolerance is -1.0"),
        (["x", "y", "--loss-tolerance", "nan"], 1, "loss_tolerance is nan"),
        (["x", "y", "--tolerance", "1"], 2, "unknown argument --tolerance"),
        (["x", "y", "--history", "h"], 2, "--history stands alone"),
        (["--history", "h", "--loss-tolerance", "0"], 2, "--history stands alone"),
        (
            ["--history", "nowhere"],
            1,
            "nowhere: cannot be read (No such file or directory); make bench-history writes one.",
        ),
        (["nowhere", "y"], 1, "nowhere: no such folder; expected the output folder of a run."),
    ],
)
def test_wrong_use_is_one_sentence(words: list[str], status: int, message: str) -> None:
    done = run_entrenar("compare", *words)
    assert (done.returncode, done.stdout) == (status, "") and message in done.stderr and done.stderr.count("\n") == 1
