"""Bad input, as a user meets it: one sentence that names what is wrong, a status, and nothing written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from entrenar.cli.finetune import main
from entrenar.errors import EntrenarError
from tests.models.builders import random_arrays, small_config, write_gguf
from tests.train.builders import ROOT, run_example

SETTINGS = ["--steps", "2", "--sequence-length", "48", "--held-out-fraction", "0.2"]


def sentence(text: str) -> str:
    """The text, after holding it to what a message is."""
    assert text.count("\n") == 1 and text.endswith("\n"), f"more than one line:\n{text}"
    assert "Traceback" not in text and len(text) < 500
    return text


# ---------------------------------------------------------------------- through the shell
@pytest.mark.chaos
@pytest.mark.parametrize(
    ("arguments", "environment", "status", "message"),
    [
        (["--stps", "3"], {}, 2, r"unknown argument --stps; did you mean '--steps'\?"),
        (["--step", "3"], {}, 2, r"unknown argument --step; did you mean '--steps'\?"),
        (["--steps", "many"], {}, 2, r"argument --steps: 'many' is not an integer"),
        (["--lr", "1e-3"], {}, 2, r"error: unknown argument --lr; it is called --learning-rate here\.$"),
        (["--data", "a", "--data", "b"], {}, 2, r"error: --data is given twice; expected it once\.$"),
        (["--config", "a", "--config", "b"], {}, 2, r"error: --config is given twice; expected it once\.$"),
        (["--config", ""], {}, 2, r"error: argument --config: the value is empty; leave the flag out, or"),
        (["--rank", "0"], {}, 1, r"^error: qlora\.rank is 0, expected at least 1\.$"),
        (["--model", ""], {}, 2, r"error: argument --model: the value is empty; leave the flag out, or"),
        (["--model", "nowhere"], {}, 1, r"^error: nowhere: no such file or directory; expected a GGUF file or a Hugg"),
        ([], {"ENTRENAR_NUM_THREADS": "zero"}, 1, r"^error: ENTRENAR_NUM_THREADS='zero' must be an integer"),
        ([], {"ENTRENAR_ISA": "v9"}, 1, r"^error: ENTRENAR_ISA='v9' is no SIMD tier; choose one of base, v3"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list | dict) else None,
)
def test_a_wrong_command_ends_with_one_sentence(
    arguments: list[str], environment: dict[str, str], status: int, message: str, tmp_path: Path
) -> None:
    run = run_example("llama2_finetune_qlora.py", "--output", tmp_path / "run", *arguments, **environment)
    assert run.returncode == status
    assert run.stdout == ""
    assert re.search(message, sentence(run.stderr))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.chaos
def test_a_shape_that_no_machine_holds_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    run = run_example("llama2_train.py", "--config", ROOT / "configs/llama2/70b.toml", "--output", tmp_path / "run")
    assert run.returncode == 1
    assert re.search(r"needs about \d{3,}\.\d GiB \(.* of optimizer and .*\) and .* is available", sentence(run.stderr))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("limit", "every", "what"),
    [(20_000, 0, "adapter"), (20_000, 1, "checkpoint"), (2_000, 1, ".entrenar.begun")],  # what the run is
)
def test_a_full_disk_names_the_file_and_leaves_no_part_of_it(
    limit: int, every: int, what: str, model: Path, data: Path, tmp_path: Path
) -> None:
    """A limit on the size of files fails in the same calls as a disk without room."""
    program = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); import runpy, sys; "
    program += "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    example = str(ROOT / "examples" / "llama2_finetune_qlora.py")
    files = ["--model", str(model), "--data", str(data), "--output", str(tmp_path / "run")]
    command = [sys.executable, "-c", program, example, *files, *SETTINGS, "--checkpoint-every", str(every)]
    command += [] if every else ["--checkpoint-minutes", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 1
    assert re.search(rf"^error: .*{re.escape(what)}.*: cannot be written \(.*File too large.*\)", sentence(run.stderr))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not (tmp_path / "run" / what).exists()


# ---------------------------------------------------------------------- the same in this process
def refused(model: Path, data: Path, output: Path, *arguments: str, kind: str = "qlora") -> str:
    """The message with which a run is refused; nothing may be written."""
    files = ["--model", str(model), "--data", str(data), "--output", str(output)]
    pairs = zip(SETTINGS[::2], SETTINGS[1::2], strict=True)
    others = [word for pair in pairs if pair[0] not in arguments for word in pair]
    with pytest.raises(EntrenarError) as error:
        main([*files, *others, *arguments], kind=kind)
    assert not output.exists()
    return sentence(f"{error.value}\n")


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"examples\.jsonl: cannot be read \(No such file or directory\)"),
        ("", r"examples\.jsonl: holds no examples"),
        ("\n\n", r"examples\.jsonl: holds no examples"),
        ("hello", r"examples\.jsonl, line 1: is not JSON"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": 3}', r"examples\.jsonl, line 2: prompt is 3"),
        ('{"prompt": "a", "completion": ""}', r"examples\.jsonl, line 1: completion is ''"),
        ('["a"]', r"examples\.jsonl, record 1: is a text, expected an object"),
    ],
)
def test_bad_examples_name_file_and_line(content: str | None, message: str, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    if content is not None:
        file.write_text(content)
    assert re.search(message, refused(model, file, tmp_path / "run"))


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--sequence-length", "129"],
            r"training\.sequence_length is 129, longer than the context of .*: 128\.",
        ),
        (
            ["--target-modules", "q_prj"],
            r"qlora\.target_modules: 'q_prj' is no linear of a decoder layer.*did you mean 'q_proj'\?",
        ),
        (["--alpha", "nan"], r"qlora\.alpha is nan, expected a finite number"),
        (["--learning-rate", "0"], r"training\.learning_rate is 0\.0, expected more than 0"),
        (["--seed", "-1"], r"training\.seed is -1, expected at least 0"),
        (["--seed", "9" * 30], r"training\.seed is an integer of \d+ bits"),
        (["--threads", "100000"], r"threads"),
        (["--optimizer", "adamm"], r"training\.optimizer is 'adamm'; did you mean 'adam"),
        (["--warmup-steps", "9"], r"lr_schedule\.warmup_steps is 9, expected at most training\.steps = 2"),
        (["--resume"], r"checkpoint: there is no checkpoint to resume; start without resume first"),
        (["--config", "none.toml"], r"none\.toml: cannot be read \(No such file or directory\)"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_bad_flag_names_its_key(arguments: list[str], message: str, model: Path, data: Path, tmp_path: Path) -> None:
    assert re.search(message, refused(model, data, tmp_path / "run", *arguments))


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nstps = 3", r"run\.toml: training\.stps is no known key; did you mean 'steps'\?"),
        ("[trainin]\nsteps = 3", r"run\.toml: \[trainin\] is no known section; did you mean 'training'\?"),
        ('[training]\nsteps = "3"', r"run\.toml: training\.steps is '3', expected an integer"),
        ("[model]\nhiden_size = 3", r"run\.toml: model\.hiden_size is no known key; .*hidden_size"),
        ('[model]\nbase_model = "m"', r"model\.base_model is no known key; it is called path here\."),
        ("model = 3", r"run\.toml: .*model.*table"),
        ("model = 0", r"run\.toml: .*model.*table"),
        ("[model]\nvocab_size = 3", r"model\.vocab_size is 3, and .*model\d? has 280; remove \[model\]"),
        ("[lora]\nrank = 3", r"run\.toml: has a \[lora\] section, and this program reads \[qlora\]"),
        ("[training", r"run\.toml: is not valid TOML"),
    ],
)
def test_a_bad_configuration_file_is_named_with_its_key(
    text: str, message: str, model: Path, data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert re.search(message, refused(model, data, tmp_path / "run", "--config", str(file)))


@pytest.mark.chaos
@pytest.mark.parametrize("place", ["file/run", "/proc/run", "/sys/run"])
def test_a_place_that_cannot_be_written_is_refused_at_once(place: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output = Path(place) if place.startswith("/") else tmp_path / place
    message = refused(tmp_path / "no-model-is-read", data, output)
    assert re.search(rf"checkpointing\.directory: {re.escape(str(output))} cannot be written \(", message)


# ---------------------------------------------------------------------- bad models
def edit_weights(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        file = directory / "model.safetensors"
        arrays = load_file(file)
        change(arrays)
        save_file(arrays, file)

    return edit


def without_context(directory: Path) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"max_position_embeddings": 32}))


NORM, QUERY = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"
MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (
        lambda path: os.truncate(path / "model.safetensors", 1000),
        r"model\.safetensors: is truncated, damaged or no safetensors file",
    ),
    "tensor missing": (
        edit_weights(lambda arrays: arrays.__delitem__(QUERY)),
        rf"the tensor {re.escape(QUERY)} of shape \(64, 64\) is missing",
    ),
    "tensor of another shape": (
        edit_weights(lambda arrays: arrays.update({QUERY: arrays[QUERY][:32].copy()})),
        rf"the tensor {re.escape(QUERY)} has shape \(32, 64\), expected \(64, 64\)",
    ),
    "NaN": (
        edit_weights(lambda arrays: arrays[NORM].__setitem__(3, np.nan)),
        rf"the tensor {re.escape(NORM)} of type F32 is nan at \[\d+\], expected finite weights",
    ),
    "NaN in a matrix": (
        edit_weights(lambda arrays: arrays[QUERY].__setitem__((3, 3), np.nan)),
        rf"{re.escape(QUERY)}",
    ),
    "no tokenizer": (lambda path: (path / "tokenizer.json").unlink(), r"tokenizer\.json: no such file"),
    "no config": (lambda path: (path / "config.json").unlink(), r"has no config\.json"),
    "a short context": (without_context, r"training\.sequence_length is 48, longer than the context of .*: 32"),
}


@pytest.mark.chaos
@pytest.mark.parametrize("kind", MODELS)
def test_a_bad_model_directory_names_file_or_tensor(kind: str, model: Path, data: Path, tmp_path: Path) -> None:
    damage, message = MODELS[kind]
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    damage(copy)
    assert re.search(message, refused(copy, data, tmp_path / "run"))


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["truncated", "magic", "empty"])
def test_a_bad_gguf_file_is_named(kind: str, data: Path, tmp_path: Path) -> None:
    config = small_config()
    file = tmp_path / "model.gguf"
    write_gguf(file, config, random_arrays(config))
    content = file.read_bytes()
    file.write_bytes({"truncated": content[:-5000], "magic": b"GGML" + content[4:], "empty": b""}[kind])
    message = refused(file, data, tmp_path / "run", kind="lora")
    assert re.search(
        r"model\.gguf: (is truncated|begins with the bytes 47 47 4d 4c, expected 47 47 55 46|is empty)", message
    )
