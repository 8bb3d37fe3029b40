"""The program `entrenar`: its verbs, what stands before them, and that each is a file, a row, a help and a test."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import entrenar
from entrenar.cli import main as module
from entrenar.cli.main import VERBS, dispatch
from tests.train.builders import ROOT, run_entrenar

FRAME = {"__init__", "main", "flags", "run"}  # the files of entrenar/cli that are no verb
RUNS = ["finetune", "train"]  # the verbs that train


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    """The status, output and error output of a command line."""
    with pytest.raises(SystemExit) as ended:
        dispatch(words)
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


# ---------------------------------------------------------------------- before the verb
@pytest.mark.unit
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], f"expected a verb ({', '.join(VERBS)}); entrenar --help says what they do."),
        (["finetun"], "'finetun' is no verb; did you mean 'finetune'?"),
        (["fine-tune", "--steps", "3"], "'fine-tune' is no verb; did you mean 'finetune'?"),
        (["trian"], "'trian' is no verb; did you mean 'train'?"),
        (["x\n"], f"'x\\n' is no verb; expected one of {', '.join(sorted(VERBS))}."),
        (
            ["--steps", "3", "finetune"],
            f"unknown argument --steps; flags stand after the verb: entrenar {' or '.join(VERBS)} --steps.",
        ),
        (["--version", "train"], "unknown argument train; a verb stands first: entrenar train --help."),
        (["--version", "--version"], "--version is given twice; expected it once."),
    ],
    ids=" ".join,
)
def test_what_is_no_verb_is_one_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(words, capsys) == (2, "", f"entrenar: error: {message}\n")


@pytest.mark.unit
def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["--version"])
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert capsys.readouterr().out == f"entrenar {version[1]}\n"


@pytest.mark.unit
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_verbs(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, error = said([flag], capsys)
    assert (status, error) == (0, "")
    for verb, purpose in VERBS.items():
        assert re.search(rf"^  {verb} +{re.escape(purpose)}$", out, re.MULTILINE)


@pytest.mark.unit
def test_the_console_script_ends_as_every_program_here() -> None:
    ended = run_entrenar("nonsense")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "entrenar: error: 'nonsense' is no verb; did you mean 'finetune'?\n"
    ended = run_entrenar("--version")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"entrenar {version()}\n", "")
    ended = run_entrenar("doctor", ENTRENAR_ISA="v9")  # what shows during imports
    assert ended.returncode == 1 and ended.stderr.startswith("error: ENTRENAR_ISA='v9' is no SIMD tier; choose one of")


def version() -> str | None:
    return entrenar._version(Path(entrenar.__path__[0]))


# ---------------------------------------------------------------------- each verb
@pytest.mark.architecture
def test_every_verb_is_a_file_and_a_row() -> None:
    folder = Path(module.__file__).parent
    assert {path.stem for path in folder.glob("*.py")} - FRAME == set(VERBS)


@pytest.mark.architecture
def test_a_file_and_a_row_are_all_that_a_verb_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    file = ModuleType("entrenar.cli.count")
    file.main = lambda arguments, *, prog: (len(arguments), prog)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, file.__name__, file)
    monkeypatch.setitem(VERBS, "count", "count words")
    assert dispatch(["count", "a", "--b"]) == (2, "entrenar count")


@pytest.mark.architecture
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_test_that_runs_it(verb: str) -> None:
    source = (ROOT / "tests" / "cli" / f"test_{verb}.py").read_text()
    assert f'"{verb}"' in source and "run_entrenar(" in source


@pytest.mark.unit
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_with_examples_and_defaults(verb: str) -> None:
    ended = run_entrenar(verb, "--help", COLUMNS="1000")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"usage: entrenar {verb} [-h]")
    assert re.search(rf"^    entrenar {verb} (check )?--\w", ended.stdout, re.MULTILINE)
    options = re.split(r"\n  (?=--)", ended.stdout)[1:]
    assert len(options) > {"export": 8, **dict.fromkeys(RUNS, 20)}.get(verb, 0)
    for option in options:
        assert re.search(r"\(([\w-]+, )*([\w-]+; )?(default: |required\))", option), option


@pytest.mark.unit
@pytest.mark.parametrize("verb", RUNS)
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stps", "3"], "unknown argument --stps; did you mean '--steps'?"),
        (["--lr", "1"], "unknown argument --lr; it is called --learning-rate here."),
        (["nonsense"], "unknown argument nonsense; a value stands after its flag (--data FILE)."),
        (["--data", "a", "--data", "b"], "--data is given twice; expected it once."),
        (["--config", "llama2/tiny", "--config", "b"], "--config is given twice; expected it once."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_flag_of_a_verb_is_one_sentence(
    verb: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, error = said([verb, *words], capsys)
    assert (status, out, error.count("\n")) == (2, "", 1)
    assert error.startswith(f"entrenar {verb}: error: {message}")
