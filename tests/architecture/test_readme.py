"""README is true: its code runs, and every command, file and name in it exists."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import entrenar

from .sources import ROOT, text

pytestmark = pytest.mark.architecture
README = text(ROOT / "README.md")
SCRIPT = "from entrenar.cli.main import main; main()"  # as an installer writes it
FENCE = re.compile(r"^```(?P<language>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[str]:
    """The code blocks whose fence says exactly this; "python skip" marks those that need files of the reader's."""
    return [match["code"] for match in FENCE.finditer(README) if match["language"].strip() == language]


def uncompiled(folder: Path) -> Path:
    """The checkout as it is before anything is compiled."""
    shutil.copytree(ROOT / "entrenar", folder / "entrenar", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "configs", folder / "configs")
    version = entrenar._version(Path(entrenar.__path__[0]))
    (folder / "pyproject.toml").write_text(f'version = "{version}"\n')
    return folder


@pytest.mark.parametrize("where", ["anywhere", "the root of a checkout that is not compiled"])
def test_the_python_blocks_run_one_after_the_other(where: str, tmp_path: Path) -> None:
    code = blocks("python")
    assert len(code) >= 2
    if where != "anywhere":
        uncompiled(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(Path(entrenar.__path__[0]).parent)}
    result = subprocess.run(  # `python -c`: the working directory comes first
        [sys.executable, "-c", "\n".join(code)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "1,000,576 parameters" in result.stdout


@pytest.mark.parametrize("installed", ["none", "another version"])
def test_sources_that_nobody_compiled_say_so(installed: str, tmp_path: Path) -> None:
    root = uncompiled(tmp_path)
    path = str(Path(entrenar.__path__[0]).parent)
    if installed == "another version":
        (root / "pyproject.toml").write_text('version = "99"\n')
    command = [sys.executable, "-S", "-c", "import entrenar"]
    environment = os.environ | {"PYTHONPATH": path if installed == "another version" else ""}
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    said = result.stderr.strip().splitlines()[-1]
    other = "the installed package is version" if installed == "another version" else "and none is installed; install"
    assert said.startswith(f"ImportError: {root.resolve()}/entrenar holds the sources of entrenar ")
    assert other in said
    assert said.endswith("`pip install .`, compile them in place with `make build`, or start Python in another folder.")


def test_the_python_blocks_that_do_not_run_here_import_what_exists() -> None:
    for code in blocks("python skip"):
        compile(code, "README.md", "exec")
        for module, names in re.findall(r"^from (entrenar[\w.]*) import (.+)$", code, re.MULTILINE):
            for name in re.split(r",\s*", names):
                assert hasattr(importlib.import_module(module), name.strip()), f"{module}.{name}"


def commands() -> list[str]:
    """Every command in README: indented lines and code in backticks."""
    prose = FENCE.sub("", README)
    return re.findall(r"^ {4}(\S.*)$", prose, re.MULTILINE) + re.findall(r"`([^`\n]+)`", prose)


def test_every_make_target_exists() -> None:
    named = {target for command in commands() for target in re.findall(r"\bmake ([a-z][a-z0-9-]*)", command)}
    assert "test" in named
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", text(ROOT / "Makefile"), re.MULTILINE))
    assert named - targets == set()


def test_every_command_of_the_makefile_is_described() -> None:
    rules = re.findall(r"^([a-z][a-z0-9-]*):([^\n]*)", text(ROOT / "Makefile"), re.MULTILINE)
    assert [target for target, rest in rules if "## " not in rest] == []


def test_every_file_exists() -> None:
    roots = "entrenar|examples|configs|tests|fuzz|scripts|benchmarks|docs"
    named = {path for command in commands() for path in re.findall(rf"(?<!/)\b((?:{roots})/[\w./{{}},*-]+)", command)}
    assert "examples/llama2_finetune_qlora.py" in named
    missing = [path for path in sorted(named) if not list(ROOT.glob(path)) and "{" not in path]
    assert missing == []


def test_every_flag_is_one_that_the_program_takes() -> None:
    checked = 0
    for command in commands():
        match = re.match(r"(python examples/\w+\.py|entrenar [a-z]+)\b(.*)", command)
        if match and "--" in match[2]:
            program = match[1].split()
            run = program[1:] if program[0] == "python" else ["-c", SCRIPT, program[1]]
            helped = subprocess.run(
                [sys.executable, *run, *re.findall(r"--adapter|(?<=--adapter )\w+", match[2]), "--help"],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(Path(entrenar.__file__).parents[1])},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for flag in re.findall(r"--[a-z][a-z-]*", match[2]):
                assert re.search(rf"{flag}\b", helped), f"{match[1]} has no {flag}"
                checked += 1
    assert checked >= 3


def test_every_environment_variable_is_read_somewhere() -> None:
    named = set(re.findall(r"`(ENTRENAR_\w+)", README))
    assert "ENTRENAR_ISA" in named
    sources = "".join(text(path) for path in (ROOT / "entrenar").rglob("*.py*") if path.suffix in (".py", ".pyx"))
    assert [variable for variable in named if variable not in sources] == []
