"""The verb `completion`: what a shell offers once its script is loaded."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from entrenar.cli.completion import SHELLS, main, parser_of
from entrenar.cli.main import VERBS
from tests.train.builders import run_entrenar

BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
_entrenar
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
compadd() { [[ $1 == -- ]] && shift; print -rl -- "$@"; }
_describe() { print -rl -- ${(P)2%%:*}; }
_files() { print -r -- FILES; }
source "$1"; shift
words=("$@"); CURRENT=$#
_entrenar
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The script of each shell, as the program writes it."""
    folder = tmp_path_factory.mktemp("scripts")
    for shell in SHELLS:
        main([shell, "--output", str(folder / shell)])
    return {shell: folder / shell for shell in SHELLS}


def installed(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    return found


def offered(script: Path, *words: str, cwd: Path | None = None) -> list[str]:
    """What bash offers for the last of the words."""
    command = [installed("bash"), "--norc", "-c", BASH, "bash", str(script), *words]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd)
    assert ended.stderr == ""
    return [line for line in ended.stdout.splitlines() if line]


@pytest.mark.unit
def test_bash_completes_verbs_flags_values_and_paths(scripts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "my data.jsonl").write_text("")
    (tmp_path / "model.gguf").write_text("")
    script = scripts["bash"]
    assert offered(script, "entrenar", "fine") == ["finetune"]
    assert set(VERBS) <= set(offered(script, "entrenar", ""))
    assert offered(script, "entrenar", "finetune", "--optim") == ["--optimizer"]
    assert {"adamw", "sgd"} <= set(offered(script, "entrenar", "finetune", "--optimizer", ""))
    assert offered(script, "entrenar", "finetune", "--schedule", "=", "warm") == ["warmup_cosine"]
    assert "warmup_cosine" in offered(script, "entrenar", "finetune", "--schedule", "=")
    assert offered(script, "entrenar", "finetune", "--steps", "", cwd=tmp_path) == []
    assert offered(script, "entrenar", "finetune", "--data", "my", cwd=tmp_path) == ["my data.jsonl"]
    assert offered(script, "entrenar", "inspect", "mod", cwd=tmp_path) == ["model.gguf"]
    assert offered(script, "entrenar", "data", "") == ["check"]
    assert offered(script, "entrenar", "completion", "") == list(SHELLS)
    assert offered(script, "entrenar", "pull", "--rev") == ["--revision"]


@pytest.mark.unit
@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_of_a_verb_is_offered(verb: str, scripts: dict[str, Path]) -> None:
    flags = {name for action in parser_of(verb)._actions for name in action.option_strings if name.startswith("--")}
    assert flags | {"--debug"} <= set(offered(scripts["bash"], "entrenar", verb, "--"))


@pytest.mark.unit
def test_flags_of_every_kind_of_adapter_are_offered(scripts: dict[str, Path]) -> None:
    flags = set(offered(scripts["bash"], "entrenar", "finetune", "--"))
    assert {"--rank", "--num-virtual-tokens", "--feedforward-modules", "--quantize-4bit", "--use-dora"} <= flags
    kinds = offered(scripts["bash"], "entrenar", "finetune", "--adapter", "")
    assert {"lora", "qlora", "none"} <= set(kinds)


@pytest.mark.unit
def test_zsh_completes_the_same(scripts: dict[str, Path]) -> None:
    def said(*words: str) -> list[str]:
        command = [installed("zsh"), "-f", "-c", ZSH, "zsh", str(scripts["zsh"]), *words]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        assert ended.stderr == ""
        return ended.stdout.split()

    assert set(VERBS) <= set(said("entrenar", ""))
    assert "--optimizer" in said("entrenar", "finetune", "--optim")
    assert {"adamw", "sgd"} <= set(said("entrenar", "finetune", "--optimizer", ""))
    assert said("entrenar", "finetune", "--data", "") == said("entrenar", "inspect", "m") == ["FILES"]
    assert said("entrenar", "finetune", "--steps", "") == []
    assert said("entrenar", "data", "") == ["check"]


@pytest.mark.unit
def test_fish_completes_the_same(scripts: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("")

    def said(line: str) -> list[str]:
        program = f"source {scripts['fish']}; complete -C '{line}'"
        command = [installed("fish"), "--no-config", "-c", program]
        ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
        return [found.split("\t")[0] for found in ended.stdout.splitlines()]

    assert said("entrenar fine") == ["finetune"]
    assert said("entrenar finetune --optim") == ["--optimizer"]
    assert {"adamw", "sgd"} <= set(said("entrenar finetune --optimizer "))
    assert "model.gguf" in said("entrenar inspect mod") and "model.gguf" in said("entrenar finetune --data mod")
    assert said("entrenar finetune --steps ") == []


@pytest.mark.chaos
def test_the_program_prints_what_it_writes(scripts: dict[str, Path], tmp_path: Path) -> None:
    ended = run_entrenar("completion", "bash")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, scripts["bash"].read_text(), "")
    for words, status, message in (
        (("tcsh",), 2, "entrenar completion: error: argument SHELL: "),
        ((), 2, "entrenar completion: error: the following arguments are required: SHELL"),
        (("bash", "--output", str(tmp_path / "none" / "x")), 0, ""),
        (("bash", "--output", "/dev/null/x"), 1, "error: /dev/null"),
    ):
        ended = run_entrenar("completion", *words)
        assert ended.returncode == status and ended.stderr.startswith(message), ended.stderr
