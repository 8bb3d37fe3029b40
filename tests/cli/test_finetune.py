"""`entrenar finetune` from files to files: each kind of adapter and none, as the examples do it, and Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from entrenar.adapters.registry import KINDS
from entrenar.cli.finetune import main
from entrenar.errors import ConfigError
from entrenar.llama import LLaMAModel
from entrenar.lora import load_adapter
from tests.conftest import heed_interrupts
from tests.train.builders import entrenar_command, metrics, run_entrenar, run_example

SETTINGS = ("--steps", "3", "--sequence-length", "48", "--held-out-fraction", "0.2")


def files(model: Path, data: Path, output: Path) -> tuple[str | Path, ...]:
    return ("--model", model, "--data", data, "--output", output)


# ---------------------------------------------------------------------- what it trains
@pytest.mark.unit
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_is_trained_and_loads(kind: str, model: Path, data: Path, tmp_path: Path) -> None:
    main([*map(str, files(model, data, tmp_path / "run")), *SETTINGS, "--adapter", kind])
    assert len(metrics(tmp_path / "run")) == 3
    load_adapter(LLaMAModel.from_pretrained(model), tmp_path / "run" / "adapter")


@pytest.mark.unit
def test_without_an_adapter_all_weights_are_trained(model: Path, data: Path, tmp_path: Path) -> None:
    ended = run_entrenar("finetune", *files(model, data, tmp_path / "run"), *SETTINGS, "--adapter", "none")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "(100.00 %)" in ended.stdout
    trained = LLaMAModel.from_pretrained(tmp_path / "run" / "model")
    assert trained.config.hidden_size == LLaMAModel.from_pretrained(model).config.hidden_size


@pytest.mark.unit
@pytest.mark.parametrize("kind", ["lora", "qlora"])
def test_an_example_is_the_verb_to_the_last_bit(kind: str, model: Path, data: Path, tmp_path: Path) -> None:
    words = ("finetune", "--adapter", kind) if kind != "qlora" else ("finetune",)  # the default
    verb = run_entrenar(*words, *files(model, data, tmp_path / "verb"), *SETTINGS)
    example = run_example(f"llama2_finetune_{kind}.py", *files(model, data, tmp_path / "example"), *SETTINGS)
    assert (verb.returncode, verb.stderr) == (example.returncode, example.stderr) == (0, "")
    written = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("verb", "example")]
    assert written[0].read_bytes() == written[1].read_bytes()
    table = json.loads((tmp_path / "verb" / "adapter" / "adapter_config.json").read_text())
    assert (table["r"], table["lora_alpha"]) == (16, 32.0)


@pytest.mark.unit
def test_the_file_says_which_adapter(model: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[lora]\nrank = 3\n[training]\nsteps = 2\nsequence_length = 48\n[data]\nheld_out_fraction = 0.2\n")
    ended = run_entrenar("finetune", "--config", file, *files(model, data, tmp_path / "run"), "--alpha", "5")
    assert (ended.returncode, ended.stderr) == (0, "")
    table = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (table["r"], table["lora_alpha"]) == (3, 5.0)
    assert "4-bit" not in ended.stdout and "nf4" not in ended.stdout


@pytest.mark.unit
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not KINDS[kind]().storage_options()])
def test_every_kind_sits_on_a_base_in_4_bits(kind: str, model: Path, data: Path, tmp_path: Path) -> None:
    words = ("finetune", "--adapter", kind, "--quantize", "nf4", *files(model, data, tmp_path / "run"), *SETTINGS)
    ended = run_entrenar(*words)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert re.search(r"weights +│ .* nf4", ended.stdout)
    assert (tmp_path / "run" / "adapter" / "adapter_config.json").exists()


# ---------------------------------------------------------------------- what is wrong
@pytest.mark.unit
def test_a_folder_that_is_missing_and_a_misspelt_path_are_said(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^--adapter is runs/no, and there is no such folder; expected that of an ad"
    ):
        main(["--adapter", "runs/no"])
    (tmp_path / "run.toml").write_text('[model]\npth = "base"\n')
    with pytest.raises(ConfigError, match=r"model\.pth is no known key; did you mean 'path'\?"):
        main(["--config", str(tmp_path / "run.toml")])


@pytest.mark.unit
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adapter", "loar"], "argument --adapter: 'loar' is not known; did you mean 'lora'?"),
        (["--adapter", "none", "--quantize", "nf4"], "unknown argument --quantize; "),
        (["--adapter", "none", "--rank", "4"], "unknown argument --rank; "),
        (["--adapter", "lora", "--adapter", "qlora"], "--adapter is given twice; expected it once."),
        (["--fine-tune-type", "lora"], "unknown argument --fine-tune-type; there is none here: entrenar finetune --ad"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_flag_is_one_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words, prog="entrenar finetune")
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out, printed.err.count("\n")) == (2, "", 1)
    assert printed.err.startswith(f"entrenar finetune: error: {message}")


@pytest.mark.unit
@pytest.mark.parametrize("chosen", ["qlora", "none"])
def test_a_file_with_another_adapter_than_the_flag_says_is_refused(chosen: str, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[lora]\nrank = 3\n")
    message = rf"run\.toml: has a \[lora\] section, and --adapter is {chosen}; give one of both"
    with pytest.raises(ConfigError, match=message):
        main(["--config", str(file), "--adapter", chosen])


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--model", "nowhere"], 1, "error: nowhere: no such file or directory; expected a GGUF file or a Hugging"),
        (["--config", "none.toml"], 1, "error: none.toml: cannot be read (No such file or directory)"),
        (["--rank", "0"], 1, "error: qlora.rank is 0, expected at least 1."),
        (["--adapter", "lora", "--quantize", "nf3"], 1, "error: model.quantize is 'nf3'; did you mean 'nf4'?"),
        (["--dtype", "float16x"], 1, "error: model.dtype is 'float16x'; did you mean 'float16'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_writes_nothing(words: Sequence[str], status: int, message: str, tmp_path: Path) -> None:
    ended = run_entrenar("finetune", "--output", tmp_path / "run", *words)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (status, "", 1)
    assert ended.stderr.startswith(message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.chaos
def test_ctrl_c_says_how_to_go_on_and_that_works(model: Path, data: Path, tmp_path: Path) -> None:
    words = ("finetune", *files(model, data, tmp_path / "run"), *SETTINGS[2:], "--schedule", "constant")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        entrenar_command(*words, "--steps", "100000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=heed_interrupts,
    )
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGINT)
            break
    process.stdout.read()
    errors = process.stderr.read()
    assert process.wait(60) == 130
    found = re.fullmatch(
        r"interrupted: stopped after step (\d+) of 100000; .*/step-\1 is written, and .*--resume.*\n", errors
    )
    assert found is not None, errors
    steps = int(found[1]) + 2
    resumed = run_entrenar(*words, "--steps", str(steps), "--resume")
    assert (resumed.returncode, resumed.stderr) == (0, "")
    assert f"resumed after step {found[1]}" in resumed.stdout
    assert len(metrics(tmp_path / "run")) == steps


# ---------------------------------------------------------------------- flags of adapters
def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        main(arguments)
    return "".join(capsys.readouterr())


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--adapter", "ia3", "--rank", "4"],
            "unknown argument --rank; the kind ia3 has no such option; lora and qlora",
        ),
        (
            ["--adapter", "prefix", "--target-modules", "q_proj"],
            "--target-modules; the kind prefix has no such option;",
        ),
        (["--adapter", "lora", "--num-virtual-tokens", "4"], "the kind lora has no such option; prefix has it."),
        (
            ["--adapter", "none", "--no-use-rslora"],
            "--no-use-rslora; a run without an adapter has no such option; lora",
        ),
        (["--adapter", "lora", "--quantize-4bit"], "the kind lora has no such option; qlora has it."),
        (["--preset", "mpl"], "argument --preset: 'mpl' is not known; did you mean 'mlp'?"),
        (["--adapter", "ia3", "--preset", "mlp"], "unknown argument --preset; presets are of LoRA: --adapter lora"),
    ],
)
def test_an_option_that_the_kind_has_not_is_named_with_those_that_have_it(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in said(arguments, capsys)


@pytest.mark.unit
def test_the_presets_are_in_the_help_and_flags_change_them(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(said(["--help"], capsys).split())
    assert "mlp: rank 10 on the MLP's linears alone, to forget least" in text
    assert "all-linear: rank 16 with rsLoRA on every linear, to learn most" in text
    words = ["--adapter", "lora", "--preset", "mlp", "--rank", "3", "--steps", "1", *SETTINGS[2:]]
    main([*map(str, files(model, data, tmp_path / "run")), *words])
    table = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (table["r"], table["lora_alpha"]) == (3, 20.0)
    assert table["target_modules"] == ["gate_proj", "up_proj", "down_proj"]
    path = tmp_path / "run.toml"
    path.write_text("[lora]\nrank = 2\n")
    with pytest.raises(ConfigError, match=r"has a \[lora\] section, and --preset is mlp; give one of both, or write"):
        main(["--config", str(path), "--adapter", "lora", "--preset", "mlp"])


@pytest.mark.unit
@pytest.mark.parametrize(
    ("words", "said_of_the_base"),
    [
        (["--adapter", "qlora", "--init-lora-weights", "loftq"], False),
        (["--adapter", "lora", "--quantize", "nf4", "--init-lora-weights", "pissa_niter_4", "--use-dora"], True),
        (["--adapter", "lora", "--init-lora-weights", "pissa", "--loraplus-lr-ratio", "4"], False),
        (["--adapter", "lora", "--modules-to-save", "lm_head,norm", "--target-modules", "embed_tokens,q_proj"], False),
    ],
    ids=["loftq", "pissa over nf4", "pissa, lora+", "whole modules"],
)
def test_what_lora_begins_with_and_trains_beside_resumes_and_loads(
    words: list[str], said_of_the_base: bool, model: Path, data: Path, tmp_path: Path
) -> None:
    common = [*map(str, files(model, data, tmp_path / "run")), *SETTINGS[2:], *words]
    main([*common, "--steps", "2"])
    main([*common, "--steps", "3", "--resume"])
    assert len(metrics(tmp_path / "run")) == 3
    summary = (tmp_path / "run" / "summary.json").read_text()
    assert ("gave the base in nf4 other quantized values" in summary) == said_of_the_base
    load_adapter(LLaMAModel.from_pretrained(model), tmp_path / "run" / "adapter")


@pytest.mark.unit
def test_a_prefix_that_leaves_too_few_positions_is_refused_before_training(
    model: Path, data: Path, tmp_path: Path
) -> None:
    context = LLaMAModel.from_pretrained(model).config.max_position_embeddings
    words = ["--adapter", "prefix", "--num-virtual-tokens", "9", "--sequence-length", str(context - 8)]
    with pytest.raises(ConfigError, match=rf"is {context - 8}, with 9 positions of the adapter before it, longer than"):
        main([*map(str, files(model, data, tmp_path / "run")), *words])
