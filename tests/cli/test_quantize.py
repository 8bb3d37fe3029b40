"""`entrenar quantize`: a model as a GGUF file of a type."""

from __future__ import annotations

from pathlib import Path

import pytest

from entrenar.io.gguf import GGUFFile
from tests.train.builders import run_entrenar


@pytest.mark.unit
def test_a_directory_becomes_a_file_of_the_type(model: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.gguf"
    ended = run_entrenar("quantize", "--model", model, "--type", "q8_0", "--output", output, "--data", data)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "before" in ended.stdout and "after" in ended.stdout
    assert GGUFFile(output).tensors["blk.0.ffn_down.weight"].type == "Q8_0"
    again = run_entrenar("quantize", "--model", output, "--type", "Q4_0", "--output", tmp_path / "s.gguf")
    assert again.returncode == 0
    assert GGUFFile(tmp_path / "s.gguf").tensors["blk.0.ffn_down.weight"].type == "Q4_0"


@pytest.mark.chaos
def test_what_is_wrong_is_one_sentence(model: Path, tmp_path: Path) -> None:
    for words, status, text in (
        (["--output", "x.gguf"], 2, "required: --type"),
        (["--output", tmp_path / "x.gguf", "--type", "Q4_K_L"], 1, "did you mean 'Q4_K"),
        (["--output", tmp_path / "none" / "y" / "x.gguf", "--type", "Q8_0", "--adapter", "a"], 2, "--adapter"),
        (["--output", "/proc/x.gguf", "--type", "Q8_0"], 1, "cannot be written"),
    ):
        ended = run_entrenar("quantize", "--model", model, *map(str, words))
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (status, "", 1), ended.stderr
        assert text in ended.stderr, ended.stderr
