"""`entrenar train` from a text to a model, as the example does it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from entrenar.io.tokenizer import Tokenizer
from entrenar.llama import LLaMAModel
from tests.train.builders import metrics, run_entrenar, run_example

FILE = """
[model]
vocab_size = 300
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 1
num_attention_heads = 2
max_position_embeddings = 64

[training]
steps = 2
sequence_length = 32

[data]
held_out_fraction = 0.2
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(FILE)
    return file


@pytest.mark.unit
def test_the_verb_is_the_example_to_the_last_bit(config: Path, data: Path, tmp_path: Path) -> None:
    words = ("--config", config, "--data", data, "--batch-size", "2", "--output")
    verb = run_entrenar("train", *words, tmp_path / "verb")
    example = run_example("llama2_train.py", *words, tmp_path / "example")
    assert (verb.returncode, verb.stderr) == (example.returncode, example.stderr) == (0, "")
    written = [tmp_path / name / "model" / "model.safetensors" for name in ("verb", "example")]
    assert written[0].read_bytes() == written[1].read_bytes()
    assert len(metrics(tmp_path / "verb")) == 2
    assert json.loads((tmp_path / "verb" / "summary.json").read_text())["steps"] == 2
    model = LLaMAModel.from_pretrained(tmp_path / "verb" / "model")
    assert model.config.vocab_size == 300
    assert Tokenizer.from_directory(tmp_path / "verb" / "model").vocab_size <= 300


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--config", "none.toml"), "error: none.toml: cannot be read (No such file or directory)"),
        (("--data", "none.jsonl"), "error: none.jsonl: cannot be read (No such file or directory)"),
        (("--steps", "0"), "error: training.steps is 0, expected at least 1."),
        (("--config", "llama2/70b"), "error: "),
    ],
    ids=" ".join,
)
def test_a_wrong_command_writes_nothing(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    ended = run_entrenar("train", "--output", tmp_path / "run", *words)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert ended.stderr.startswith(message)
    assert list(tmp_path.iterdir()) == []
