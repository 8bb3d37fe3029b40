"""Every example runs as its first lines say, and does what they promise."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from entrenar.config import shipped_configurations
from entrenar.errors import MemoryBudgetError
from entrenar.io.hub import fetch_default_model
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import load_adapter
from entrenar.train import TrainConfig, memory, pretrain
from entrenar.train.updates import OPTIMIZERS
from tests.train.builders import ROOT, metrics, run_example

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


# ---------------------------------------------------------------------- what they show
@pytest.mark.unit
def test_the_basics_print_the_gradients_and_learn_xor() -> None:
    run = run_example("autograd_basics.py")
    assert (run.returncode, run.stderr) == (0, "")
    first, *losses, last = run.stdout.splitlines()
    assert first == "sum(relu(a + b)) = 21.0  da = [1.0, 1.0, 1.0]  db = [1.0, 1.0, 1.0]"
    values = [float(line.rsplit(" ", 1)[1]) for line in losses]
    assert len(values) == 4 and values[0] > 0.1 and values[-1] < 0.01
    assert json.loads(last.removeprefix("XOR: ")) == pytest.approx([0, 1, 1, 0], abs=0.15)


@pytest.mark.unit
def test_a_few_steps_of_pretraining_on_the_documentation(tmp_path: Path) -> None:
    settings = ("--steps", "3", "--max-examples", "600", "--batch-size", "2", "--output", tmp_path / "tiny")
    run = run_example("llama2_train.py", "--config", ROOT / "configs/llama2/tiny.toml", *settings)
    assert (run.returncode, run.stderr) == (0, "")
    assert re.search(r"trainable parameters\s+│ 1,000,576 \(100 %\)", run.stdout)
    before, after = map(float, re.findall(r"loss │\s*(\d+\.\d+) │\s*(\d+\.\d+)", run.stdout)[0])
    assert 7.4 < before < 7.8  # ln 2048 = 7.62
    assert after < before
    assert [row["step"] for row in metrics(tmp_path / "tiny")] == ["1", "2", "3"]
    model = LLaMAModel.from_pretrained(tmp_path / "tiny" / "model")
    tokenizer = Tokenizer.from_directory(tmp_path / "tiny" / "model")
    assert tokenizer.vocab_size == model.config.vocab_size == 2048


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "124m"])
def test_a_shipped_configuration_takes_a_step_of_its_own_shape(name: str, tmp_path: Path) -> None:
    """As shipped, but for how long and how much: every example, so that the vocabulary is the one of a whole run."""
    settings = (
        "--steps",
        "1",
        "--sequence-length",
        "32",
        "--gradient-accumulation",
        "1",
        "--held-out-fraction",
        "1e-9",
    )
    run = run_example("llama2_train.py", "--config", f"llama2/{name}", *settings, "--output", tmp_path / "run")
    assert (run.returncode, run.stderr) == (0, "")
    shape = LLaMAConfig.from_file(f"llama2/{name}")
    assert f"{shape.num_parameters():,} (100 %)" in run.stdout
    found = re.search(r"vocabulary\s+│ ([\d,]+) tokens", run.stdout)
    assert found is not None
    assert (int(found[1].replace(",", "")) < shape.vocab_size) == ("stay unused" in run.stdout)
    assert LLaMAConfig.from_hf(tmp_path / "run" / "model" / "config.json").vocab_size == shape.vocab_size


@pytest.mark.unit
@pytest.mark.parametrize(
    "name", [name for name in shipped_configurations() if name.split("/")[1] not in ("tiny", "124m")]
)
def test_a_shipped_configuration_beyond_the_machine_is_refused_before_anything_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, config = LLaMAConfig.from_file(name), TrainConfig.from_file(name)
    config.checkpointing.directory = str(tmp_path / "run")
    monkeypatch.setattr(memory, "available_memory", lambda: 16 << 30)
    least = 16 * shape.num_parameters() / 2**30  # weights, gradients and Adam's two states, in float32
    with pytest.raises(MemoryBudgetError) as refused:
        pretrain(shape, config)
    found = re.search(r"needs about ([\d.]+) GiB \(.*\) and 16\.0 GiB is available", str(refused.value))
    assert found is not None, str(refused.value)
    assert least < float(found[1]) < 2 * least
    assert not (tmp_path / "run").exists()


@pytest.mark.unit
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_how_it_is_run(example: Path) -> None:
    text = ast.get_docstring(ast.parse(example.read_text()))
    assert text is not None
    assert f"python examples/{example.name}" in text


@pytest.mark.unit
@pytest.mark.parametrize("example", [path for path in EXAMPLES if "llama2" in path.name], ids=lambda path: path.stem)
def test_help_lists_every_flag_with_its_default(example: Path) -> None:
    run = run_example(example.name, "--help", COLUMNS="1000")
    assert (run.returncode, run.stderr) == (0, "")
    options = re.split(r"\n  (?=--)", run.stdout)[1:]
    assert len(options) > 25
    for option in options:
        assert re.search(r"\(([\w-]+, )*([\w-]+; )?default: ", option), option
    assert f"({', '.join(OPTIMIZERS)}; default: " in run.stdout
    assert "decay of the weights in each step, of matrices only unless decay_norms is on" in " ".join(
        run.stdout.split()
    )


# ---------------------------------------------------------------------- the real model
@dataclass(frozen=True)
class Run:
    """What a process left: its folder, what it printed, and its peak memory in MiB."""

    output: Path
    status: int
    printed: str
    errors: str
    peak: float


# Run a program and write the process's own peak: what the system counts for a child begins with its parent's.
MEASURED = """
import runpy, sys
from pathlib import Path
peak, sys.argv = sys.argv[1], sys.argv[2:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    lines = Path("/proc/self/status").read_text().splitlines()
    Path(peak).write_text(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps of the QLoRA example on SmolLM2."""
    fetch_default_model(progress=False)
    output = tmp_path_factory.mktemp("smollm2")
    settings = ("--steps", "2", "--max-examples", "40", "--held-out-fraction", "0.05", "--learning-rate", "1e-2")
    program = str(ROOT / "examples" / "llama2_finetune_qlora.py")
    command = [sys.executable, "-c", MEASURED, str(output / "peak"), program, *settings, "--output", str(output)]
    environment = os.environ | {"COLUMNS": "200"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return Run(output, run.returncode, run.stdout, run.stderr, int((output / "peak").read_text()) / 1024)


@pytest.mark.model
@pytest.mark.slow
def test_two_steps_on_smollm2_keep_its_own_quantized_values(smollm2: Run) -> None:
    assert (smollm2.status, smollm2.errors) == (0, "")
    assert re.search(r"weights\s+│ 28\.3 M q8_0, 4\.9 M float32, 106\.2 M q4_1 ", smollm2.printed)
    assert re.search(r"trainable parameters\s+│ 4,884,480 of 139,399,488 \(3\.50 %\)", smollm2.printed)
    rows = metrics(smollm2.output)
    assert [row["tokens"] for row in rows] == ["512", "512"]
    assert 1.5 < float(rows[0]["loss"]) < 4.5  # a pretrained model
    assert re.search(r"Prompt: Explain the Python topic '", smollm2.printed)


@pytest.mark.model
@pytest.mark.slow
def test_the_estimate_for_smollm2_is_near_its_peak_memory(smollm2: Run) -> None:
    (estimated,) = re.findall(r"estimated peak memory\s+│ (\d+\.\d+) GiB", smollm2.printed)
    assert float(estimated) * 1024 == pytest.approx(smollm2.peak, rel=0.25)
    assert smollm2.peak < 1.3 * 1024


@pytest.mark.model
@pytest.mark.slow
def test_the_adapter_of_smollm2_loads_here_and_changes_its_answer(smollm2: Run) -> None:
    model = LLaMAModel.from_pretrained(fetch_default_model(progress=False), quantize="auto")
    tokens = [[1, 28120, 905, 28]]
    plain = model(tokens).numpy()
    load_adapter(model, smollm2.output / "adapter")
    difference = abs(model(tokens).numpy() - plain).max()
    assert 1e-3 < difference < 100
