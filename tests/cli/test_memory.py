"""The verb `memory`: the plan of a run, its parts, and the settings that would make it fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from entrenar.cli.memory import main
from entrenar.cli.run import run
from entrenar.errors import MemoryBudgetError
from entrenar.train import memory, memory_plan
from tests.train.builders import SHAPE, run_entrenar
from tests.train.test_memory import SMOLLM2


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The file of a shape."""
    path = tmp_path / "shape.toml"
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    values = {key: getattr(SMOLLM2, key) for key in (*keys, "num_key_value_heads")} | {"tie_word_embeddings": "true"}
    path.write_text("[model]\n" + "".join(f"{key} = {value}\n" for key, value in values.items()))
    return str(path)


def said(*words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    main([*words, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.unit
def test_the_parts_are_those_of_the_plan(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", model, "--adapter", "lora", "--rank", "4", "--gradient-checkpointing", "7")
    found = said(*words, "--sequence-length", "256", capsys=capsys)
    assert (found["layers"], found["recomputed_layers"], found["fits"], found["remedies"]) == (30, 7, True, [])
    assert {"weights", "gradients", "optimizer", "activations", "scratch"} <= set(found["parts"])
    assert found["bytes"] == sum(found["parts"].values()) < found["available_bytes"]
    assert found["parts"]["optimizer"] == 2 * found["parts"]["gradients"] == 8 * found["trained_parameters"]
    assert found["parameters"] == SMOLLM2.num_parameters()


@pytest.mark.unit
def test_each_flag_changes_the_part_that_it_is_about(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    def parts(*words: str) -> dict[str, int]:
        found: dict[str, int] = said("--model", model, *words, capsys=capsys)["parts"]
        return found

    base = parts("--adapter", "lora", "--gradient-checkpointing", "off", "--dtype", "float32")
    for words, part, factor in (
        (("--rank", "32"), "gradients", 2),
        (("--sequence-length", "1024"), "activations", 2),
        (("--batch-size", "2"), "activations", 2),
        (("--optimizer", "sgd"), "optimizer", 0.5),
        (("--gradient-checkpointing", "on"), "activations", 0.17),
        (("--dtype", "bfloat16"), "weights", 0.53),
        (("--quantize", "nf4"), "weights", 0.36),
    ):
        again = () if words[0] == "--gradient-checkpointing" else ("--gradient-checkpointing", "off")
        again += () if words[0] == "--dtype" else ("--dtype", "float32")
        assert parts("--adapter", "lora", *again, *words)[part] == pytest.approx(factor * base[part], rel=0.15), words
    assert parts("--adapter", "lora", "--verify-every", "1")["verification"] == 3 * base["gradients"]
    assert parts("--adapter", "none")["gradients"] == 4 * SMOLLM2.num_parameters()


@pytest.mark.unit
def test_the_weights_of_a_shape_are_taken_to_be_of_16_bits(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--model", model, "--adapter", "lora")
    found, wide = (said(*words, *more, capsys=capsys) for more in ((), ("--dtype", "float32")))
    assert (found["assumed_dtype"], wide["assumed_dtype"]) == ("bfloat16", None)
    saved = wide["parts"]["weights"] - found["parts"]["weights"]
    assert saved == pytest.approx(2 * SMOLLM2.num_parameters(), rel=0.01)
    main(words)
    assert "taken as stored in bfloat16, as models are published (see --dtype)." in capsys.readouterr().out
    scratch = said("--model", model, "--adapter", "none", capsys=capsys)
    assert scratch["assumed_dtype"] is None and scratch["parts"]["weights"] == 4 * SMOLLM2.num_parameters()


@pytest.mark.unit
def test_what_does_not_fit_ends_with_1_and_says_what_would(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_plan, "available_memory", lambda: 1400 << 20)
    words = ["--model", model, "--adapter", "lora", "--gradient-checkpointing", "off", "--sequence-length", "1024"]
    words += ["--dtype", "float32"]
    with pytest.raises(SystemExit) as ended:
        run(lambda: main([*words, "--json"]))
    printed = capsys.readouterr()
    table = json.loads(printed.out)
    assert ended.value.code == 1 and not table["fits"]
    assert printed.err.startswith("error: The run needs about ") and printed.err.count("\n") == 1
    assert "; use training.gradient_checkpointing = auto (" in printed.err
    assert "--gradient-checkpointing auto" in [row["flags"] for row in table["remedies"]]
    for row in table["remedies"]:  # each is true
        kept = words.copy()
        flags = row["flags"].split()
        for flag in flags[::2]:
            if flag in kept:
                at = kept.index(flag)
                del kept[at : at + 2]
        assert said(*kept, *flags, capsys=capsys)["bytes"] == row["bytes"]
    with pytest.raises(MemoryBudgetError):
        main(words)
    shown = capsys.readouterr().out
    assert "It does not fit." in shown and "with --gradient-checkpointing auto\n" in shown


@pytest.mark.unit
def test_a_run_that_does_not_fit_names_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 1400 << 20)
    from entrenar.train.config import TrainConfig, Training
    from tests.train.test_memory import ALL

    training = Training(sequence_length=1024, gradient_checkpointing="off")
    with pytest.raises(MemoryBudgetError, match=r"; use training\.gradient_checkpointing = auto \(\d\.\d GiB\) or "):
        memory.plan(SMOLLM2, TrainConfig(training=training, adapter=ALL))


@pytest.mark.chaos
def test_the_program_says_what_is_wrong(tmp_path: Path) -> None:
    shape = tmp_path / "shape.toml"
    shape.write_text(f"[model]\nhidden_size = {SHAPE.hidden_size + 1}\n")
    for words, status, message in (
        (("--model", "none.gguf"), 1, "error: none.gguf: no such file or directory"),
        (("--model", str(shape)), 1, f"error: {shape}: "),
        (("--steps", "3"), 2, "entrenar memory: error: unknown argument --steps; "),
        (("--model", "llama2/tiny", "--adapter", "none", "--quantize", "nf4"), 2, "entrenar memory: error: unknown"),
        (
            ("--model", "llama2/tiny", "--gradient-checkpointing", "99"),
            1,
            "error: training.gradient_checkpointing is 99, ",
        ),
        (("--model", "llama2/tiny", "--sequence-length", "99999"), 1, "error: training.sequence_length is 99999"),
    ):
        ended = run_entrenar("memory", *words)
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (status, "", 1), ended.stderr
        assert ended.stderr.startswith(message)
