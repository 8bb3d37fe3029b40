"""The whole configuration as TOML: printed, kept by a run, and the same run again; what a short file means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from entrenar.cli.main import dispatch
from entrenar.config import load_toml
from entrenar.errors import ConfigError
from tests.train.builders import run_entrenar


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert dispatch(["finetune", *map(str, words), "--print-config"]) is None
    return capsys.readouterr().out


@pytest.mark.unit
@pytest.mark.parametrize("kind", ["qlora", "lora", "ia3", "none"])
def test_what_is_printed_says_every_key_and_prints_itself(
    kind: str, model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, "--adapter", kind, "--model", model, "--data", data, "--steps", 7, "--learning-rate", 0.5)
    (tmp_path / "c.toml").write_text(text)
    table = load_toml(tmp_path / "c.toml")
    assert table["training"]["steps"] == 7 and table["model"]["path"] == str(model)
    assert table["data"]["path"] == str(data)
    assert table["checkpointing"]["directory"] == ("outputs/full" if kind == "none" else f"outputs/{kind}")
    assert re.search(r"^steps = 7 +# optimizer steps; default \d+$", text, re.MULTILINE)
    assert printed(capsys, "--config", tmp_path / "c.toml") == text


@pytest.mark.unit
def test_a_short_file_leaves_the_programs_other_defaults(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = printed(capsys)
    (tmp_path / "c.toml").write_text("[qlora]\nrank = 8\n")
    assert printed(capsys, "--config", tmp_path / "c.toml") == plain.replace("rank = 16 ", "rank = 8 ")
    assert '"all-linear"' in plain and 'directory = "outputs/qlora"' in plain
    (tmp_path / "c.toml").write_text(f'[model]\npath = "{model}"\ndtype = "bfloat16"\n[lora]\npreset = "mlp"\n')
    text = printed(capsys, "--config", tmp_path / "c.toml")
    assert (
        f'path = "{model}"' in text and 'dtype = "bfloat16"' in text and '["gate_proj", "up_proj", "down_proj"]' in text
    )
    (tmp_path / "c.toml").write_text("[model]\ndtype = 3\n")
    with pytest.raises(ConfigError, match=r"c\.toml: model\.dtype is 3, expected text"):
        printed(capsys, "--config", tmp_path / "c.toml")
    (tmp_path / "c.toml").write_text('[model]\npath = "x"\nvocab_size = 280\n')
    with pytest.raises(ConfigError, match="training from scratch does not use"):
        dispatch(["train", "--config", str(tmp_path / "c.toml")])


@pytest.mark.unit
def test_the_file_in_a_runs_folder_is_the_run_again(model: Path, data: Path, tmp_path: Path) -> None:
    flags = ["--steps", "3", "--batch-size", "2", "--sequence-length", "64", "--held-out-fraction", "0.2"]
    words = ["--model", model, "--data", data, "--adapter", "lora", "--rank", "4", *flags, "--seed", "5"]
    first = run_entrenar("finetune", *words, "--output", tmp_path / "a")
    assert first.returncode == 0, first.stderr
    config = tmp_path / "a" / "config.toml"
    second = run_entrenar("finetune", "--config", config, "--output", tmp_path / "b")
    assert second.returncode == 0, second.stderr
    weights = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert (tmp_path / "b" / "config.toml").read_text() == config.read_text().replace(
        f'directory = "{tmp_path / "a"}"', f'directory = "{tmp_path / "b"}"'
    )


@pytest.mark.unit
def test_debug_adds_the_traceback_and_nothing_else(tmp_path: Path) -> None:
    plain = run_entrenar("inspect", tmp_path / "none")
    for words in (["inspect", tmp_path / "none", "--debug"], ["--debug", "inspect", tmp_path / "none"]):
        ended = run_entrenar(*words)
        assert ended.returncode == plain.returncode == 1 and ended.stdout == ""
        assert ended.stderr.startswith("Traceback (most recent call last):") and ended.stderr.endswith(plain.stderr)
    assert "--debug" in run_entrenar("--help").stdout
