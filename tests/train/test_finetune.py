"""Runs from files to files: what is written, what is shown, and the same bits."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from entrenar.cli.main import dispatch
from entrenar.data import encode_example, evaluation_batches, read_examples, split_held_out
from entrenar.errors import ConfigError, FormatError, safe
from entrenar.io.safetensors import open_safetensors
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import LoRAConfig, load_adapter
from entrenar.qlora import QLoRAConfig
from entrenar.train import Result, evaluate, finetune, pretrain
from entrenar.train.report import COLUMNS
from tests.train.builders import (
    ROOT,
    SHAPE,
    SMALL,
    config_for,
    metrics,
    quiet,
    run_example,
    write_examples,
    write_model,
)

SETTINGS = ("--steps", "4", "--batch-size", "2", "--sequence-length", "64", "--held-out-fraction", "0.2")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_examples(tmp_path_factory.mktemp("data") / "examples.jsonl")


# ---------------------------------------------------------------------- through the examples
@pytest.fixture(scope="module")
def qlora_runs(
    model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Path, subprocess.CompletedProcess[str]]]:
    """The QLoRA example with dropout, twice on two threads and once on one."""
    runs = []
    for number, threads in enumerate(("2", "2", "1")):
        output = tmp_path_factory.mktemp(f"qlora{number}")
        files = ("--model", model, "--data", data, "--output", output)
        extra = ("--dropout", "0.1", "--evaluate-every", "2", "--threads", threads)
        runs.append((output, run_example("llama2_finetune_qlora.py", *files, *SETTINGS, *extra)))
    return runs


@pytest.mark.unit
def test_the_qlora_example_writes_its_adapter_and_says_so(
    qlora_runs: list[tuple[Path, subprocess.CompletedProcess[str]]], model: Path
) -> None:
    output, run = qlora_runs[0]
    assert (run.returncode, run.stderr) == (0, "")
    assert sorted(str(path.relative_to(output)) for path in output.rglob("*")) == [
        "adapter",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "checkpoint",
        "checkpoint/step-4",
        "checkpoint/step-4/SHA256SUMS",
        "checkpoint/step-4/state.json",
        "checkpoint/step-4/state.safetensors",
        "config.toml",
        "metrics.csv",
        "metrics.jsonl",
        "summary.json",
    ]
    assert json.loads((output / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(model)
    for wanted in (
        r"threads\s+│ 2 ",
        r"SIMD tier\s+│ (base|v3|v4|v4i) ",
        r"trainable parameters\s+│ [\d,]+ of [\d,]+ \(\d+\.\d\d %\)",
        r"estimated peak memory\s+│ \d+\.\d\d GiB of \d+\.\d\d GiB available",
        r"weights\s+│ .*float32, .* nf4",
        r"data\s+│ \d+ samples, \d+ % of the tokens trained, 0 truncated",
        r"held out\s+│ \d+ tokens in \d+ rows",
        r"held-out loss before: \d+\.\d{4} \(perplexity \d+\.\d{3}\)",
        r"step 3/4  loss \d+\.\d{4}\s+\d+\.\d tokens/s\s+\d+ s left",
        r"step 2: held-out loss \d",
        r"loss │\s*\d+\.\d{4} │\s*\d+\.\d{4} │\s*[+-]\d",
        r"perplexity │\s*\d+\.\d{3} │\s*\d+\.\d{3} │\s*[+-]\d",
        r"Prompt: What is \d plus \d\?",
        r"\nBefore: ",
        r"\nAfter: ",
        rf"Written: {re.escape(str(output))}/adapter and {re.escape(str(output))}/metrics\.csv",
    ):
        assert re.search(wanted, run.stdout), f"{wanted} is not in\n{run.stdout}"


@pytest.mark.unit
def test_metrics_have_a_row_for_each_step(qlora_runs: list[tuple[Path, subprocess.CompletedProcess[str]]]) -> None:
    rows = metrics(qlora_runs[0][0])
    assert tuple(rows[0]) == COLUMNS
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert [bool(row["held_out_loss"]) for row in rows] == [False, True, False, True]
    for row in rows:
        assert all(math.isfinite(float(row[column])) for column in COLUMNS[:-1])
        assert row["tokens"] == "128" and 0 < int(row["trained_tokens"]) < 128


@pytest.mark.unit
def test_two_runs_and_other_thread_counts_give_the_same_bits(
    qlora_runs: list[tuple[Path, subprocess.CompletedProcess[str]]],
) -> None:
    found = []
    for output, run in qlora_runs:
        assert run.returncode == 0, run.stderr
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in metrics(output)]
        found.append((rows, (output / "adapter" / "adapter_model.safetensors").read_bytes()))
    assert found[0] == found[1] == found[2]


@pytest.mark.unit
def test_the_lora_example_trains_over_a_bfloat16_base(model: Path, data: Path, tmp_path: Path) -> None:
    files = ("--model", model, "--data", data, "--output", tmp_path / "run")
    run = run_example("llama2_finetune_lora.py", *files, *SETTINGS, "--dtype", "bfloat16", "--rank", "3")
    assert (run.returncode, run.stderr) == (0, "")
    assert re.search(r"weights\s+│ .*bfloat16", run.stdout)
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == 3 and len(config["target_modules"]) == 7
    assert len(metrics(tmp_path / "run")) == 4


@pytest.mark.unit
def test_a_configuration_file_sets_the_defaults_and_flags_win(model: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        f'[training]\nsteps = 2\nsequence_length = 48\n[qlora]\nrank = 5\n[data]\npath = "{data}"\n'
        f'held_out_fraction = 0.2\n[checkpointing]\ndirectory = "{tmp_path}/run"\n'
    )
    run = run_example("llama2_finetune_qlora.py", "--config", file, "--model", model, "--steps", "1")
    assert (run.returncode, run.stderr) == (0, "")
    assert "1 of 1 x 48 tokens" in run.stdout
    assert json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["r"] == 5


@pytest.mark.unit
def test_ia3_trains_over_a_4_bit_base_by_a_file_of_its_section_and_resumes(
    model: Path, data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        "[training]\nsteps = 2\nsequence_length = 48\nlearning_rate = 0.02\n"
        '[lr_schedule]\nname = "constant"\n[ia3]\ntarget_modules = ["all-linear"]\n'
        f'[data]\npath = "{data}"\nheld_out_fraction = 0.2\n[checkpointing]\ndirectory = "{tmp_path}/run"\nevery = 2\n'
    )
    flags = ["finetune", "--config", str(file), "--model", str(model), "--quantize", "nf4"]
    dispatch(flags)
    resumed = dispatch([*flags, "--steps", "4", "--resume"])
    whole = dispatch([*flags, "--steps", "4", "--output", str(tmp_path / "whole")])
    assert isinstance(resumed, Result)
    assert isinstance(whole, Result)
    assert resumed.output.name == "adapter"
    written = [result.output / "adapter_model.safetensors" for result in (resumed, whole)]
    assert written[0].read_bytes() == written[1].read_bytes()
    settings = json.loads((resumed.output / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["feedforward_modules"]) == ("IA3", ["down_proj"])
    again = LLaMAModel.from_pretrained(model, quantize="nf4")
    load_adapter(again, resumed.output)
    assert {weight.dtype for name, weight in again.named_parameters() if name.endswith("_proj.weight")} == {"nf4"}
    assert resumed.after.loss < resumed.before.loss


@pytest.mark.unit
def test_a_terminal_shows_progress_in_place(model: Path, data: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    files = ("--model", model, "--data", data, "--output", tmp_path / "run")
    command = [
        sys.executable,
        ROOT / "examples" / "llama2_finetune_qlora.py",
        *files,
        *SETTINGS,
        "--evaluate-every",
        "2",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120", "TERM": "xterm"}
    with subprocess.Popen(list(map(str, command)), stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how the end of a terminal is told
            while chunk := os.read(ours, 4096):
                shown += chunk
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert process.returncode == 0, text
    assert re.search(r"loss \d+\.\d{4} +\d+\.\d tokens/s .* 4/4 \d:\d\d:\d\d", text)
    assert "step 2: held-out loss" in text and "step 3/4" not in text
    assert "reading model and examples" in text and "Traceback" not in text


@pytest.mark.unit
def test_text_of_a_model_cannot_steer_the_terminal() -> None:
    assert safe(" a\x1b[2Jb\r\x07 ü 漢\n\tc\x00 ") == " a\ufffd[2Jb\ufffd\ufffd ü 漢\n\tc\ufffd "


# ---------------------------------------------------------------------- what a run leaves
@pytest.mark.unit
def test_the_held_out_loss_after_is_that_of_the_adapter_that_was_written(
    model: Path, data: Path, tmp_path: Path
) -> None:
    result, printed = quiet(model, config_for(data, tmp_path / "run", replace(SMALL, steps=20, precision="highest")))
    assert result.after.loss < result.before.loss - 0.5
    tokenizer = Tokenizer.from_directory(model)
    _, held_out = split_held_out(read_examples(data), 0.2)
    batches = list(evaluation_batches([encode_example(example, tokenizer) for example in held_out], 2, 64, True, 0))
    fresh = LLaMAModel.from_pretrained(model)
    assert evaluate(fresh, batches).loss == pytest.approx(result.before.loss, abs=1e-6)
    load_adapter(fresh, result.output)
    assert evaluate(fresh, batches).loss == pytest.approx(result.after.loss, abs=1e-6)
    assert result.output == tmp_path / "run" / "adapter" and result.metrics == tmp_path / "run" / "metrics.csv"
    assert f"{result.before.loss:.4f}" in printed and f"{result.after.loss:.4f}" in printed
    assert result.sample_before != result.sample_after and result.sample_after.strip() in printed


@pytest.mark.unit
def test_without_adapters_every_weight_is_trained_and_a_model_is_written(
    model: Path, data: Path, tmp_path: Path
) -> None:
    result, printed = quiet(model, config_for(data, tmp_path, adapter=None))
    assert result.output == tmp_path / "model"
    assert "(100.00 %)" in printed
    before, after = open_safetensors(model / "model.safetensors"), open_safetensors(result.output / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        assert not np.array_equal(before[name].load(), after[name].load()), name
    LLaMAModel.from_pretrained(result.output)
    assert Tokenizer.from_directory(result.output).encode("What is") == Tokenizer.from_directory(model).encode(
        "What is"
    )


@pytest.mark.unit
def test_frozen_storage_cannot_be_trained_whole(model: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="dtype is bfloat16, which is storage of frozen weights"):
        quiet(model, config_for(data, tmp_path / "run", adapter=None), dtype="bfloat16")
    with pytest.raises(ConfigError, match="quantize is nf4, which is storage of frozen weights"):
        quiet(model, config_for(data, tmp_path / "run", adapter=None), quantize="nf4")
    assert not (tmp_path / "run").exists()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("qlora", "kinds"),
    [
        (QLoRAConfig(rank=2), "nf4"),
        (QLoRAConfig(rank=2, quantize="int4"), "q4_1"),
        (QLoRAConfig(rank=2, quantize_4bit=False), None),
    ],
    ids=["auto", "int4", "off"],
)
def test_the_base_is_in_the_format_that_is_asked_for(
    qlora: QLoRAConfig, kinds: str | None, model: Path, data: Path, tmp_path: Path
) -> None:
    _, printed = quiet(model, config_for(data, tmp_path, replace(SMALL, steps=1), adapter=qlora))
    (weights,) = re.findall(r"weights\s+│ (.*?) │", printed)
    assert [part.split()[-1] for part in weights.strip().split(", ")] == ["float32"] + ([kinds] if kinds else [])


@pytest.mark.unit
def test_4_bits_are_of_the_base_whatever_the_adapter(model: Path, data: Path, tmp_path: Path) -> None:
    runs = {
        "lora": quiet(model, config_for(data, tmp_path / "lora", adapter=LoRAConfig(rank=2)), quantize="nf4"),
        "qlora": quiet(model, config_for(data, tmp_path / "qlora", adapter=QLoRAConfig(rank=2, quantize="nf4"))),
    }
    assert all("M nf4" in printed for _, printed in runs.values())
    files = [result.output / "adapter_model.safetensors" for result, _ in runs.values()]
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(ConfigError, match=r"quantize is nf4, and \[qlora\] has its own; set qlora\.quantize"):
        quiet(model, config_for(data, tmp_path / "both", adapter=QLoRAConfig()), quantize="nf4")
    assert not (tmp_path / "both").exists()


@pytest.mark.unit
def test_training_on_prompts_trains_and_evaluates_all_tokens(model: Path, data: Path, tmp_path: Path) -> None:
    answers, _ = quiet(model, config_for(data, tmp_path / "a"))
    config = config_for(data, tmp_path / "b")
    config.data = replace(config.data, train_on_prompt=True)
    everything, printed = quiet(model, config)
    assert everything.before.tokens > 1.5 * answers.before.tokens
    assert everything.reports[0].trained_tokens > 1.5 * answers.reports[0].trained_tokens
    trained = int(re.findall(r"(\d+) % of the tokens trained", printed)[0])
    assert trained > 90


# ---------------------------------------------------------------------- from scratch
@pytest.mark.unit
def test_pretraining_writes_a_model_that_generates(data: Path, tmp_path: Path) -> None:
    shape = replace(SHAPE, vocab_size=270, tie_word_embeddings=True)
    config = config_for(data, tmp_path, replace(SMALL, steps=8, sequence_length=32), adapter=None)
    out = io.StringIO()
    result = pretrain(shape, config, Console(file=out, width=200))
    summary = json.loads((tmp_path / "summary.json").read_text())
    sides = [summary["data"][side] for side in ("training", "held_out")]
    assert sum(side["examples"] for side in sides) == 64 and sides[0]["tokens"] == 32 * sides[0]["samples"]
    assert summary["samples"] == {
        "prompt": "The value of",
        "before": result.sample_before,
        "after": result.sample_after,
    }
    assert summary["memory"]["estimate"]["weights"] > 0 and summary["model"] is None
    assert re.search(r"\n\d+ tokens at the end of the text are left out: they fill no row\.\n", out.getvalue())
    assert result.before.loss == pytest.approx(math.log(270), rel=0.1)
    assert result.after.loss < result.before.loss - 0.5
    assert all(report.trained_tokens == 2 * 31 for report in result.reports)
    model, tokenizer = LLaMAModel.from_pretrained(result.output), Tokenizer.from_directory(result.output)
    assert LLaMAConfig.from_hf(result.output / "config.json").eos_token_id == tokenizer.eos_id
    assert len(model.generate(tokenizer.encode("What is"), max_new_tokens=3)) <= 3


@pytest.mark.unit
def test_a_text_that_yields_fewer_tokens_than_the_shape_has_leaves_rows_unused(data: Path, tmp_path: Path) -> None:
    shown = io.StringIO()
    config = config_for(data, tmp_path, replace(SMALL, steps=2, sequence_length=32), adapter=None)
    result = pretrain(replace(SHAPE, vocab_size=5000), config, Console(file=shown, width=200))
    model, tokenizer = LLaMAModel.from_pretrained(result.output), Tokenizer.from_directory(result.output)
    assert model.config.vocab_size == 5000
    assert 260 < tokenizer.vocab_size < 1000
    left = 5000 - tokenizer.vocab_size
    said = f"The text yields {tokenizer.vocab_size} tokens; {left:,} rows of model.vocab_size = 5,000 stay unused."
    assert said in shown.getvalue()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("vocab", "length", "sections", "message"),
    [
        (100, 32, {}, r"vocab_size is 100, expected at least 260"),
        (270, 65, {}, r"training\.sequence_length is 65, longer than model\.max_position_embeddings = 64"),
        (270, 32, {"adapter": LoRAConfig()}, r"\[lora\] needs a pretrained base"),
    ],
)
def test_a_shape_that_does_not_fit_the_text_is_refused(
    vocab: int, length: int, sections: dict[str, object], message: str, data: Path, tmp_path: Path
) -> None:
    config = config_for(
        data, tmp_path / "run", replace(SMALL, sequence_length=length), **({"adapter": None} | sections)
    )
    with pytest.raises(ConfigError, match=message):
        pretrain(replace(SHAPE, vocab_size=vocab), config, Console(file=io.StringIO()))
    assert not (tmp_path / "run").exists()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("keys", "shape", "message"),
    [
        ({"train_on_prompt": True}, {}, r"data\.train_on_prompt is true, which training from scratch does not use"),
        ({"packing": False}, {}, r"data\.packing is false, which training from scratch does not use"),
        ({}, {"eos_token_id": 7}, r"model\.eos_token_id is 7, and the tokenizer made of the text has 2; leave it out"),
        ({}, {"bos_token_id": 0}, r"model\.bos_token_id is 0, and the tokenizer made of the text has 1; leave it out"),
    ],
)
def test_a_key_that_pretraining_does_not_use_is_refused(
    keys: dict[str, bool], shape: dict[str, int], message: str, data: Path, tmp_path: Path
) -> None:
    config = config_for(data, tmp_path / "run", adapter=None)
    config.data = replace(config.data, **keys)
    with pytest.raises(ConfigError, match=message):
        pretrain(replace(SHAPE, vocab_size=270, **shape), config, Console(file=io.StringIO()))
    assert not (tmp_path / "run").exists()


@pytest.mark.unit
def test_the_shape_of_a_configuration_must_be_the_checkpoints(model: Path, data: Path, tmp_path: Path) -> None:
    config = config_for(data, tmp_path / "run", replace(SMALL, steps=1))
    shape = {"vocab_size": 280, "intermediate_size": 128}
    assert finetune(model, config, shape=shape, console=Console(file=io.StringIO())).output.exists()
    config = config_for(data, tmp_path / "other", replace(SMALL, steps=1))
    with pytest.raises(ConfigError, match=r"model\.intermediate_size is 129, and .* has 128; remove \[model\]"):
        finetune(model, config, shape=shape | {"intermediate_size": 129}, console=Console(file=io.StringIO()))


@pytest.mark.unit
def test_a_tokenizer_larger_than_its_model_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    small = tmp_path / "model"
    LLaMAModel(replace(SHAPE, vocab_size=200, max_position_embeddings=128)).save_pretrained(small)
    Tokenizer.from_directory(model).save(small)
    with pytest.raises(FormatError, match=r"has the token .* \(id 2\d\d\), and the model has 200 tokens; remove it"):
        quiet(small, config_for(data, tmp_path / "run"))


@pytest.mark.unit
def test_too_little_text_for_a_row_is_refused(tmp_path: Path) -> None:
    short = tmp_path / "short.jsonl"
    short.write_text("\n".join(json.dumps({"prompt": f"{i}", "completion": f"{i}"}) for i in range(30)))
    config = config_for(short, tmp_path / "run", replace(SMALL, sequence_length=64), adapter=None)
    with pytest.raises(ConfigError, match="is too short for a row of 64 tokens to train on and one to hold out"):
        pretrain(replace(SHAPE, vocab_size=260), config, Console(file=io.StringIO()))
