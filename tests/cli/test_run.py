"""The frame of a program: what becomes of each kind of exception."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from entrenar.cli.run import run
from entrenar.errors import FormatError, MemoryBudgetError


def raising(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


@pytest.mark.unit
@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (FormatError("a.gguf: is no GGUF file."), 1, "error: a.gguf: is no GGUF file.\n"),
        (MemoryBudgetError("The run needs 9 GiB."), 1, "error: The run needs 9 GiB.\n"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 1, "error: a.txt: No such file or directory.\n"),
        (OSError(28, "No space left on device"), 1, "error: the system: No space left on device.\n"),
        (MemoryError(), 1, "error: the memory is used up; use a shorter sequence, a smaller batch or gradient check"),
        (KeyboardInterrupt(), 130, "interrupted: nothing was written.\n"),
        (KeyboardInterrupt("stopped after step 3"), 130, "interrupted: stopped after step 3\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_an_expected_end_is_one_sentence_and_a_status(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(raising(error))
    assert ended.value.code == status
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(message) and printed.err.count("\n") == 1


@pytest.mark.unit
def test_a_program_that_returns_ends_with_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(lambda: print("done"))
    assert ended.value.code == 0
    assert capsys.readouterr().out == "done\n"


@pytest.mark.unit
def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 // 0)


@pytest.mark.unit
def test_a_character_that_the_terminal_lacks_does_not_end_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with pytest.raises(SystemExit) as ended:
        run(lambda: print("naïve 漢"))
    assert ended.value.code == 0
    sys.stdout.flush()
    assert raw.getvalue() == b"na?ve ?\n"


CLOSED = """
import sys
from entrenar.cli.run import run

def main():
    from rich.console import Console
    console = Console() if sys.argv[1] == "rich" else None
    for number in range(100_000):
        console.print(number) if console else print(number)

run(main)
"""


@pytest.mark.chaos
@pytest.mark.parametrize("printer", ["rich", "plain"])
def test_a_closed_output_is_said(printer: str) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", CLOSED, printer], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    program.stdout.readline()
    program.stdout.close()
    assert program.stderr is not None
    said = program.stderr.read()
    assert program.wait(60) == 1
    assert said == "error: standard output was closed, which ended the program; write it to a file to let it go on.\n"


@pytest.mark.chaos
@pytest.mark.parametrize("end", ["", "; sys.exit(0)"], ids=["returns", "exits"])
def test_a_last_line_that_cannot_be_written_is_said(end: str) -> None:
    program = f"import sys\nfrom entrenar.cli.run import run\ndef main():\n    print('done'){end}\nrun(main)"
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", program]
        buffered = os.environ | {"PYTHONUNBUFFERED": ""}
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=buffered)
    assert (ended.returncode, ended.stderr) == (1, "error: standard output: No space left on device.\n")


@pytest.mark.chaos
def test_a_help_that_cannot_be_written_is_said() -> None:
    program = "from entrenar.cli.run import run\nfrom entrenar.config import ArgumentParser\n"
    program += "parser = ArgumentParser(epilog='long ' * 5000)\nrun(lambda: parser.parse_args(['--help']))"
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", program]
        buffered = os.environ | {"PYTHONUNBUFFERED": ""}
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=buffered)
    assert (ended.returncode, ended.stderr) == (1, "error: standard output: No space left on device.\n")


@pytest.mark.architecture
@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("entrenar", ["numpy", "rich"]),
        ("entrenar.cli.main", ["numpy", "rich"]),
        ("entrenar.cli.run", ["numpy", "rich"]),  # what an environment variable breaks is reported too
        ("entrenar.train.finetune", ["gguf", "tokenizers", "jinja2", "torch", "psutil", "ml_dtypes", "safetensors"]),
        ("entrenar.train.config, entrenar.train.options, entrenar.adapters.options", ["numpy", "rich"]),
    ],
)
def test_an_import_loads_what_it_needs_and_no_more(module: str, absent: list[str]) -> None:
    program = f"import {module}, sys; print([name for name in {absent} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
