"""What a help costs: no array library and no kernel is loaded for it. And the program as a module of Python."""

from __future__ import annotations

import subprocess
import sys

import pytest

from entrenar.cli.main import VERBS

PROGRAM = """
import contextlib, io, sys
sys.argv = ["entrenar", *sys.argv[1:]]
from entrenar.cli.main import main
printed = io.StringIO()
try:
    with contextlib.redirect_stdout(printed):
        main()
except SystemExit as ended:
    status = ended.code
assert printed.getvalue().startswith("usage: entrenar"), printed.getvalue()
heavy = [name for name in sys.modules if name.split(".")[0] == "numpy" or name.startswith("entrenar._kernels")]
print(status, heavy, len(sys.modules))
"""
MOST = 320  # modules, those of Python itself and of the terminal's tables among them


@pytest.mark.architecture
@pytest.mark.parametrize("words", [[], *([verb] for verb in VERBS), ["finetune", "--adapter", "dora"]], ids=" ".join)
def test_a_help_loads_neither_numpy_nor_a_kernel(words: list[str]) -> None:
    command = [sys.executable, "-c", PROGRAM, *words, "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    status, loaded, count = ended.stdout.split()
    assert (status, loaded) == ("0", "[]") and int(count) < MOST


@pytest.mark.architecture
def test_the_packages_import_is_a_few_modules() -> None:
    count = "import sys; before = len(sys.modules); import entrenar; print(len(sys.modules) - before)"
    ended = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 60


@pytest.mark.unit
@pytest.mark.parametrize(
    "words", [["--help"], ["pull", "--help"], ["finetun"], ["inspect", "nothing.gguf"]], ids=" ".join
)
def test_python_runs_the_program_by_its_modules_name(words: list[str]) -> None:
    ways = (["-m", "entrenar"], ["-c", "from entrenar.cli.main import main; main()"])
    first, second = (
        subprocess.run([sys.executable, *way, *words], capture_output=True, text=True, check=False) for way in ways
    )
    assert (first.returncode, first.stdout, first.stderr) == (second.returncode, second.stdout, second.stderr)
    assert first.stdout.startswith("usage: entrenar") if "--help" in words else "error: " in first.stderr
