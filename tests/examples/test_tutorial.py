"""README's six commands, from a file of one's own to a chat, each run as it stands there and its output checked."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from entrenar.io.hub import fetch_default_model
from entrenar.models.checkpoint import Checkpoint
from tests.train.builders import ROOT, entrenar_command

SECTION = "## From your own file to a chat, in six commands"
DOORS = 40


def commands() -> list[str]:
    """The lines of the section's block."""
    section = (ROOT / "README.md").read_text().split(SECTION)[1].split("\n## ")[0]
    return [line.strip() for line in re.findall(r"^    (?:pip|entrenar) .*$", section, re.MULTILINE)]


def run(command: str, folder: Path, said: str = "") -> str:
    """What a command prints; its status is 0."""
    program, *words = (os.path.expanduser(word) for word in command.split())  # noqa: PTH111 (as a shell does)
    assert program == "entrenar"
    ended = subprocess.run(
        entrenar_command(*words), cwd=folder, input=said, capture_output=True, text=True, check=False, timeout=600
    )
    assert (ended.returncode, ended.stderr) == (0, ""), command
    return ended.stdout


@pytest.mark.model
def test_the_six_commands_lead_to_a_model_that_answers(tmp_path: Path) -> None:
    fetch_default_model(progress=False)
    records = [
        {"prompt": f"What is the code of door {door}?", "completion": f"The code of door {door} is {1000 + 7 * door}."}
        for door in range(DOORS)
    ]
    (tmp_path / "my_examples.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    install, check, finetune, evaluate, export, chat = commands()
    assert install == "pip install ."  # what the tests run on
    printed = run(check, tmp_path)
    assert re.search(rf"records +│ {DOORS} ", printed) and "The code of door 0 is 1000." in printed
    printed = run(finetune, tmp_path)
    assert "step 20/20" in printed and "Written: outputs/mine/adapter" in printed
    rows = re.findall(r"^│ (none|outputs/mine/adapter) +│ +([\d.]+) │", run(evaluate, tmp_path), re.MULTILINE)
    losses = {name: float(loss) for name, loss in rows}
    assert losses["outputs/mine/adapter"] < 0.7 * losses["none"]
    printed = run(export, tmp_path)
    assert "mine.Modelfile" in printed and "mine.gguf" in printed
    Checkpoint.open(tmp_path / "mine.gguf").check()
    assert (tmp_path / "mine.Modelfile").read_text().startswith("FROM ./mine.gguf\n")
    assert re.search(r"The code of door 3 is \d+\.", run(chat, tmp_path, "What is the code of door 3?\n"))
