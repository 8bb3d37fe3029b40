"""`entrenar evaluate`: loss and perplexity of a base and of adapters over it, the base loaded once."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from entrenar.adapters.dora import DoRAConfig
from entrenar.adapters.peft import save_adapter
from entrenar.adapters.prefix import PrefixConfig
from entrenar.cli.evaluate import main
from entrenar.cli.main import dispatch
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig
from entrenar.models.weights import WeightLoader
from tests.train.builders import config_for, quiet, run_entrenar, write_model

KINDS = {
    "lora": LoRAConfig(rank=4, alpha=8.0, target_modules=["all-linear"]),
    "saved": LoRAConfig(rank=4, alpha=8.0, modules_to_save=["lm_head"], target_modules=["q_proj"]),
    "dora": DoRAConfig(rank=4, alpha=8.0, target_modules=["q_proj", "down_proj"]),
    "prefix": PrefixConfig(num_virtual_tokens=3),
}


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind, far from doing nothing."""
    made = {}
    for name, config in KINDS.items():
        loaded = LLaMAModel.from_pretrained(model)
        config.apply(loaded, 1)
        for number, (_, tensor) in enumerate(loaded.named_parameters()):
            if getattr(tensor, "requires_grad", False):
                rng = np.random.default_rng(number)
                tensor.numpy()[...] += rng.normal(0, 0.05, tensor.shape).astype(np.float32)
        made[name] = tmp_path_factory.mktemp("adapters") / name
        save_adapter(loaded, made[name])
    return made


def evaluated(*words: object) -> dict:
    found = dispatch(["evaluate", *map(str, words)])
    assert isinstance(found, dict)
    return found


@pytest.mark.unit
def test_json_has_loss_perplexity_and_tokens_and_nothing_else_is_printed(model: Path, data: Path) -> None:
    ended = run_entrenar("evaluate", "--model", model, "--data", data, "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    found = json.loads(ended.stdout)
    assert found.keys() == {"loss", "perplexity", "tokens", "examples"}
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"])) and found["tokens"] > 64
    shown = run_entrenar("evaluate", "--model", model, "--data", data)
    assert f"{found['loss']:.4f}" in shown.stdout and f"{found['tokens']:,} tokens" in shown.stdout


@pytest.mark.unit
def test_what_is_cut_or_left_out_is_counted_and_said(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "d.jsonl"
    records = [("One?", "One."), ("One?", "It is one. " * 30), ("Is it " * 60, "Two.")]
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in records))
    words = ("--model", model, "--data", path, "--sequence-length", 32)
    found = evaluated(*words)["examples"]
    assert [found[key] for key in ("read", "cut", "split", "left_out")] == [3, 1, 0, 1]
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 examples are longer than a row of 32 tokens and were cut" in shown
    assert "1 of 3 examples were left out: the prompt alone fills a row of 32 tokens" in shown
    assert evaluated(*words, "--too-long", "drop")["examples"]["left_out"] == 2
    assert evaluated(*words, "--too-long", "split")["examples"]["split"] == 1
    ended = run_entrenar("evaluate", *words, "--too-long", "error")
    assert ended.returncode == 1 and ended.stderr.startswith(f"error: {path}, line 2: has ") and ended.stdout == ""


@pytest.mark.unit
def test_the_loss_is_that_of_the_run_that_wrote_the_adapter(model: Path, data: Path, tmp_path: Path) -> None:
    result, _ = quiet(model, config_for(data, tmp_path / "run"))
    assert result.before is not None and result.after is not None
    words = ("--model", model, "--data", data, "--held-out-fraction", 0.2, "--sequence-length", 64)
    found = evaluated(*words, "--adapter", result.output, "--compare")["results"]
    assert [row["tokens"] for row in found] == [result.before.tokens] * 2
    assert found[0]["loss"] == pytest.approx(result.before.loss, rel=1e-5)
    assert found[1]["loss"] == pytest.approx(result.after.loss, rel=1e-5)


@pytest.mark.unit
def test_several_adapters_are_evaluated_over_one_base_that_is_loaded_once(
    model: Path, data: Path, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    call = WeightLoader.__call__

    def counted(self: WeightLoader, name: str, shape: tuple[int, ...]) -> object:
        read.append(name)
        return call(self, name, shape)

    monkeypatch.setattr(WeightLoader, "__call__", counted)
    words = ("--model", model, "--data", data)
    base = evaluated(*words)["loss"]
    alone = {name: evaluated(*words, "--adapter", place)["loss"] for name, place in adapters.items()}
    read.clear()
    places = [*adapters.values(), *reversed(adapters.values())]
    rows = evaluated(*words, "--compare", "--adapter", *places)["results"]
    assert len(read) == len(set(read)) == len(LLaMAModel.from_pretrained(model).config.parameter_shapes())
    assert [row["adapter"] for row in rows] == [None, *map(str, places)]
    assert rows[0]["loss"] == base and len({base, *alone.values()}) == len(KINDS) + 1
    assert [row["loss"] for row in rows[1:]] == [*alone.values(), *reversed(alone.values())]


@pytest.mark.chaos
def test_what_is_wrong_is_one_sentence_before_a_model_is_read(
    model: Path, data: Path, adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wide = write_model(tmp_path / "wide", hidden_size=128)
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n')
    for words, status, text in (
        (["--model", model], 2, "--data"),
        (["--model", "someone/some-model", "--data", data], 1, "`entrenar pull hf:someone/some-model`"),
        (["--model", "someone/some-model", "--data", data], 1, "`hf download someone/some-model`"),
        (["--model", model, "--data", "none.jsonl"], 1, "none.jsonl"),
        (["--model", model, "--data", "bad.jsonl"], 1, "bad.jsonl"),
        (["--model", model, "--data", data, "--adapter", "nowhere"], 1, "nowhere: no such file or directory"),
        (["--model", model, "--data", data, "--compare"], 1, "--compare has nothing to compare"),
        (["--model", wide, "--data", data, "--adapter", adapters["lora"]], 1, "shape"),
        (["--model", model, "--data", data, "--quantize", "nf5"], 1, "did you mean 'nf4'?"),
    ):
        ended = run_entrenar("evaluate", *words)
        assert (ended.returncode, ended.stderr.count("\n")) == (status, 1), ended.stderr
        assert text in ended.stderr, ended.stderr


@pytest.mark.unit
def test_weights_of_files_are_said_to_count_for_nothing(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.jsonl").write_text(data.read_text())
    words = ["--model", str(model), "--data", f"{data}:0.7", f"{tmp_path / 'other.jsonl'}:0.3"]
    weighted = main(words)
    assert "The weights of the files are not used" in capsys.readouterr().out
    assert weighted == main([word.removesuffix(":0.7").removesuffix(":0.3") for word in words])
    assert "weights" not in capsys.readouterr().out
