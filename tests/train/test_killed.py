"""A run killed at any moment, inside a checkpoint write too, ends with --resume in the files of one never killed."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.train.builders import write_examples, write_model

# Runs `entrenar WORDS` in processes forked from one that has imported everything; kills them where it is told to.
RUNNER = """
import json, os, signal, sys, time
import entrenar.cli.finetune
from entrenar.cli.main import main

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.chmod", "os.truncate")

def told(words, folder, at):
    seen = []
    def hook(event, arguments):
        if event in CHANGES or (event == "open" and str(arguments[0]).startswith(folder)):
            seen.append("/checkpoint/" in str(arguments[0]))
            if len(seen) == at:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    try:
        sys.argv[1:] = words
        status = main()
    except SystemExit as end:
        status = end.code
    return status, seen

for line in sys.stdin:
    words, folder, at, after = json.loads(line)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        log = os.open(folder + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1); os.dup2(log, 2)
        status = 1
        try:
            status, seen = told(words, folder, at)
            os.write(write, bytes(seen))
            sys.stdout.flush(); sys.stderr.flush()
        finally:
            os._exit(status or 0)
    os.close(write)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    seen = b""
    while part := os.read(read, 65536):
        seen += part
    os.close(read)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([status, list(seen)]), flush=True)
"""


class Runner:
    """Runs `entrenar finetune` into folders, perhaps killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        model, data = write_model(folder / "model"), write_examples(folder / "examples.jsonl")
        self.words = f"finetune --model {model} --data {data} --steps 7 --batch-size 2 --sequence-length 64 --rank 4 "
        self.words += "--dropout 0.2 --held-out-fraction 0.2 --checkpoint-every 2 --evaluate-every 3 --keep-best"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "ENTRENAR_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(self, output: Path, *more: str, at: int = 0, after: float | None = None) -> tuple[int, list[bool]]:
        """The exit status, and which of the changes of files were of a checkpoint.

        Killed at the `at`th of those changes, or `after` seconds.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        words = [*self.words.split(), "--output", str(output), *more]
        self.process.stdin.write(json.dumps([words, str(output), at, after]) + "\n")
        self.process.stdin.flush()
        status, seen = json.loads(self.process.stdout.readline())
        return status, list(map(bool, seen))

    def less(self) -> Path:
        """A file with half of the examples."""
        lines = (self.folder / "examples.jsonl").read_text().splitlines(keepends=True)
        (self.folder / "less.jsonl").write_text("".join(lines[::2]))
        return self.folder / "less.jsonl"

    @contextmanager
    def other(self, flag: str) -> Iterator[None]:
        """Another value of a flag inside the block."""
        words, (name, value) = self.words, flag.split()
        self.words = re.sub(rf"{name} \S+", f"{name} {value}", words)
        try:
            yield
        finally:
            self.words = words

    def resumed(self, output: Path) -> None:
        """Resume to the end; a run that was killed before it had its folder is begun again."""
        log = output.with_name(f"{output.name}.log")
        again = ["--resume"] if output.exists() and any(output.iterdir()) else []
        status, _ = self.run(output, *again)
        assert status == 0, log.read_text()


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    made = Runner(tmp_path_factory.mktemp("runs"))
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    made.process.wait()


# Times, and what is drawn or measured anew in each run; everything else is compared to the byte.
MEASURED = {"seconds", "phases", "resources"}


def _state(value: Any) -> Any:
    """A checkpoint's values without the run's id, its date and the times of its steps."""
    if isinstance(value, dict) and list(value) == ["dict"]:
        return [[key, _state(item)] for key, item in value["dict"] if key not in {"run", "date", *MEASURED}]
    if isinstance(value, dict) and list(value) == ["list"]:
        return [_state(item) for item in value["list"]]
    return value


def comparable(folder: Path) -> dict[str, Any]:
    """Every file below a run's folder by its name: its bytes, or where it holds times, its other values."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.name == "metrics.csv":
            with path.open(newline="") as file:
                found[name] = [[row[key] for key in row if key not in MEASURED] for row in csv.DictReader(file)]
        elif path.name == "metrics.jsonl":
            rows = map(json.loads, path.read_text().splitlines())
            found[name] = [{key: value for key, value in row.items() if key not in MEASURED} for row in rows]
        elif path.name == "summary.json":
            table = json.loads(path.read_text())
            measured = [table.pop("run"), table.pop("written"), table["memory"].pop("peak_resident_bytes")]
            assert all(measured)
            for own in ("resume", "overwrite", "directory"):
                table["configuration"]["checkpointing"].pop(own)
            found[name] = table
        elif path.name == "state.json":
            found[name] = _state(json.loads(path.read_text()))
        elif path.name == "config.toml":
            found[name] = path.read_text().replace(str(folder), "FOLDER")
        elif path.name != "SHA256SUMS":  # over state.json; held against the files on every resume
            found[name] = path.read_bytes()
        else:
            found[name] = None
    return found


@pytest.fixture(scope="module")
def whole(runner: Runner) -> tuple[dict[str, Any], list[bool]]:
    """The files of a run that was never killed, and its changes of files."""
    status, seen = runner.run(runner.folder / "whole")
    assert status == 0, (runner.folder / "whole.log").read_text()
    files = comparable(runner.folder / "whole")
    assert {"adapter/adapter_model.safetensors", "checkpoint/step-7/state.safetensors", "metrics.csv"} <= files.keys()
    assert sum(seen) > 30
    return files, seen


def check(runner: Runner, output: Path, files: dict[str, Any]) -> None:
    """Resume a killed run to its end; nothing is left that the other run has not, temporary names included."""
    runner.resumed(output)
    found = comparable(output)
    assert found.keys() == files.keys()
    assert [name for name in files if found[name] != files[name]] == []


def said(output: Path) -> str:
    """What the runs into a folder printed, as one line."""
    return " ".join(output.with_name(f"{output.name}.log").read_text().split())


def moments(seen: list[bool], seed: int, inside: int, anywhere: int) -> list[int]:
    """Random changes of files: so many of checkpoints, and so many of all."""
    draw = random.Random(seed)
    of_checkpoints = [at for at, is_one in enumerate(seen, 1) if is_one]
    return draw.sample(of_checkpoints, inside) + draw.sample(range(1, len(seen) + 1), anywhere)


@pytest.mark.chaos
def test_a_run_killed_at_random_changes_of_files_resumes_to_the_same_files(
    runner: Runner, whole: tuple[dict[str, Any], list[bool]]
) -> None:
    files, seen = whole
    for at in moments(seen, 1, inside=3, anywhere=2):
        output = runner.folder / f"change-{at}"
        assert runner.run(output, at=at)[0] == -9
        check(runner, output, files)


@pytest.mark.chaos
def test_a_run_killed_before_its_first_checkpoint_begins_anew_and_a_folder_without_a_run_is_refused(
    runner: Runner, whole: tuple[dict[str, Any], list[bool]]
) -> None:
    files, seen = whole
    output = runner.folder / "early"
    assert runner.run(output, at=seen.index(True))[0] == -9
    assert {path.name for path in output.rglob("*")} == {".entrenar.begun", ".entrenar.lock", "checkpoint"}
    (output / "report.html").write_text("of steps that are trained again")
    for flag, sentence in (("--data nowhere.jsonl", "nowhere.jsonl"), ("--rank 2", "lora.rank is 2 and was 4 when")):
        with runner.other(flag):  # a mistake does not cost the means to resume
            assert runner.run(output, "--resume")[0] == 1
        assert sentence in said(output)
    assert "early: the run was killed before a checkpoint, and begins anew." in said(output)
    check(runner, output, files)
    nowhere = runner.folder / "nowhere"
    assert runner.run(nowhere, "--resume")[0] == 1
    assert "there is no checkpoint to resume" in nowhere.with_name("nowhere.log").read_text()
    assert not nowhere.exists()


@pytest.mark.chaos
def test_a_run_over_a_result_that_is_killed_at_once_resumes_as_that_run_or_not_at_all(
    runner: Runner, whole: tuple[dict[str, Any], list[bool]]
) -> None:
    output, other = runner.folder / "over", runner.folder / "other"
    with runner.other("--rank 3"):
        assert runner.run(output)[0] == 0
    shutil.rmtree(output / "checkpoint")
    result = (output / "adapter" / "adapter_model.safetensors").read_bytes()
    shutil.copytree(output, other)
    _, seen = runner.run(other, "--overwrite")
    for at in range(1, 20):  # until it has the lock, and has not said what it is
        assert runner.run(output, "--overwrite", at=at)[0] == -9
        if (output / ".entrenar.lock").exists():
            break
    assert not (output / ".entrenar.begun").exists()
    for _ in range(2):
        assert runner.run(output, "--resume")[0] == 1
    assert "over holds an earlier run's adapter/adapter_config.json, and the run over it was killed" in said(output)
    assert runner.run(output, "--overwrite", at=seen.index(True))[0] == -9
    with runner.other(f"--data {runner.less()}"):
        assert runner.run(output, "--resume")[0] == 1
    assert "over/.entrenar.begun: was written with other examples; resume with the same" in said(output)
    assert (output / "adapter" / "adapter_model.safetensors").read_bytes() == result
    check(runner, output, whole[0])


@pytest.mark.slow
@pytest.mark.chaos
def test_a_run_killed_at_ten_more_changes_of_files_resumes_to_the_same_files(
    runner: Runner, whole: tuple[dict[str, Any], list[bool]]
) -> None:
    """The run that resumes is killed too, at another."""
    files, seen = whole
    first, second = moments(seen, 2, inside=6, anywhere=4), moments(seen, 3, inside=6, anywhere=4)
    for at, then in zip(first, second, strict=True):
        output = runner.folder / f"changes-{at}-{then}"
        assert runner.run(output, at=at)[0] == -9
        if output.exists() and any(output.iterdir()):
            assert runner.run(output, "--resume", at=then)[0] in (-9, 0)  # 0: it had less to do than that
        check(runner, output, files)


@pytest.mark.slow
@pytest.mark.chaos
def test_a_killed_run_with_compressed_checkpoints_resumes_to_the_same_files(runner: Runner) -> None:
    pytest.importorskip("zstandard")
    words, runner.words = runner.words, f"{runner.words} --checkpoint-compression zstd"
    try:
        status, seen = runner.run(runner.folder / "compressed")
        assert status == 0
        files = comparable(runner.folder / "compressed")
        for at in moments(seen, 5, inside=4, anywhere=1):
            output = runner.folder / f"compressed-{at}"
            assert runner.run(output, at=at)[0] == -9
            check(runner, output, files)
    finally:
        runner.words = words


@pytest.mark.slow
@pytest.mark.chaos
def test_a_run_killed_at_ten_random_times_resumes_to_the_same_files(
    runner: Runner, whole: tuple[dict[str, Any], list[bool]]
) -> None:
    files, _ = whole
    started = time.monotonic()
    assert runner.run(runner.folder / "timed")[0] == 0
    lasts, draw, killed = time.monotonic() - started, random.Random(4), 0
    for number in range(10):
        output = runner.folder / f"time-{number}"
        status, _ = runner.run(output, after=lasts * (number + draw.random()) / 10)
        killed += status == -9
        check(runner, output, files)
    assert killed >= 5
