"""scripts/profile_llama.py: a profile of a small program, and a sentence with status 1 where a tool is missing."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from tests.architecture.sources import ROOT

from .scripts import with_program

pytestmark = pytest.mark.unit
PROGRAM = """
import json, os, signal, sys, time
output, trace = sys.argv[sys.argv.index("--output") + 1], sys.argv[sys.argv.index("--trace-chrome") + 1]
spans, going = [], [True]
signal.signal(signal.SIGTERM, lambda *_: going.clear())
os.makedirs(output + "/checkpoint")
print("preparing", flush=True)
if "--fails" in sys.argv:
    sys.exit("there is no model")
while going:
    started = time.time()
    with open(output + "/checkpoint/a.json", "w") as file:
        file.write("x")
        os.fsync(file.fileno())
    spans.append({"name": "checkpoint", "ph": "X", "ts": started * 1e6, "dur": (time.time() - started) * 1e6})
    print("step 1/1000", flush=True)
    time.sleep(0.01)
    if "--ends" in sys.argv and len(spans) > 30:
        break
open(trace, "w").write(json.dumps(spans))
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a small program in the place of the example."""
    return with_program("profile_llama", PROGRAM, tmp_path, monkeypatch)


def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **programs: str) -> None:
    """A PATH with these programs alone, as shell scripts."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_a_program_is_profiled_with_its_causes_and_phases(script: ModuleType) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    said = io.StringIO()
    try:
        script.profile(0.5, [], Console(file=said, width=200))
    except script.Failed as error:
        pytest.skip(str(error))
    text = said.getvalue()
    assert "System calls of a training run" in text
    fsync = next(line.split() for line in text.splitlines() if line.strip().startswith("fsync"))
    assert fsync[-2:] == ["checkpoint", "checkpoint"]
    assert [line[:2] for line in text.splitlines() if line[:2] in ("1.", "2.", "3.")] == ["1.", "2.", "3."]
    assert "fewer checkpoints (checkpointing.every" in text


@pytest.mark.parametrize(
    ("programs", "flags", "sentence"),
    [
        ({}, [], "strace is missing; install it (apt-get install strace)."),
        (
            {"strace": "echo 'strace: attach: ptrace(PTRACE_SEIZE, 7): Operation not permitted' >&2; exit 1"},
            [],
            "strace could not trace the run (strace: attach: ptrace(PTRACE_SEIZE, 7): Operation not permitted); in a",
        ),
        ({"strace": "exit 1"}, [], "strace could not trace the run (it said nothing)"),
        (
            {"strace": "exit 1"},
            ["--fails"],
            "the example did not begin to train; the last that it said is: there is no model",
        ),
        ({"strace": "while :; do :; done"}, ["--ends"], "the run ended in the window"),
    ],
)
def test_what_is_missing_is_a_sentence_and_a_status(
    programs: dict[str, str],
    flags: list[str],
    sentence: str,
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tools(tmp_path, monkeypatch, **programs)
    assert script.main(["--seconds", "5", "--", *flags]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"profile-llama: {sentence}")
    assert said.err.count("\n") == 1


def test_a_window_of_no_length_is_refused(script: ModuleType) -> None:
    with pytest.raises(SystemExit):
        script.options(["--seconds", "0"])


def test_faults_of_a_process_are_counted_and_their_time_is_measured(script: ModuleType) -> None:
    before = script.faults_of(os.getpid())[0]
    assert 0 < script.seconds_of_a_fault() < 0.1
    assert script.faults_of(os.getpid())[0] > before


def test_make_passes_the_status_on(tmp_path: Path) -> None:
    """No recipe hides a failure: the target of a missing strace fails too."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("make", "sh"):
        (folder / name).symlink_to(shutil.which(name) or name)
    command = ["make", "-o", "build", "profile-llama", f"PYTHON={sys.executable}"]
    environment = {**os.environ, "PATH": str(folder)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "strace is missing" in done.stderr


@pytest.mark.parametrize(
    ("target", "module", "sentence"),
    [
        ("build", "Cython", "build: Cython is missing; pip install '.[dev]'."),
        (
            "profile-llama-anomaly",
            "sklearn",
            "profile-llama-anomaly: scikit-learn is missing; pip install 'entrenar[analyze]'.",
        ),
    ],
)
def test_make_says_which_library_is_missing(tmp_path: Path, target: str, module: str, sentence: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{module!r}] = None\n")
    command = ["make", *(["-o", "build"] if target != "build" else []), target, f"PYTHON={sys.executable}"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == sentence
    assert done.stdout == ""
