"""`entrenar inspect`: every kind of file that is read, odd and hostile ones, and what it refuses."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from entrenar.adapters.peft import save_adapter
from entrenar.cli.main import dispatch
from entrenar.errors import EntrenarError, FormatError
from entrenar.io.safetensors import save_safetensors
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig
from tests.train.builders import run_config, run_entrenar, trainer_of


def table(path: Path) -> dict:
    found = dispatch(["inspect", "--json", str(path)])
    assert isinstance(found, dict)
    return json.loads(json.dumps(found, allow_nan=False))


@pytest.mark.unit
def test_a_model_as_a_person_and_as_a_program_reads_it(model: Path) -> None:
    shown = run_entrenar("inspect", model)
    assert (shown.returncode, shown.stderr) == (0, "")
    for text in ("Hugging Face directory", "model.layers.1.mlp.down_proj.weight", "64 x 128", "F32", "config.json: "):
        assert text in shown.stdout
    found = json.loads(run_entrenar("inspect", "--json", model).stdout)
    assert found["problem"] is None and found["model"]["family"] == "llama"
    assert found["elements"] == found["model"]["parameters"] == sum(t["bytes"] for t in found["tensors"]) // 4
    assert found["types"] == {"F32": {"tensors": 21, "elements": found["elements"], "bytes": 4 * found["elements"]}}
    assert found["metadata"]["config.json"]["hidden_size"] == 64


@pytest.mark.unit
def test_every_kind_that_is_read(model: Path, tmp_path: Path) -> None:
    loaded = LLaMAModel.from_pretrained(model)
    loaded.save_gguf(tmp_path / "m.gguf", type="Q8_0")
    gguf = table(tmp_path / "m.gguf")
    assert gguf["kind"] == "GGUF model" and gguf["problem"] is None and {"Q8_0", "F32"} == set(gguf["types"])
    assert gguf["metadata"]["general.architecture"] == "llama"
    assert gguf["metadata"]["tokenizer.ggml.tokens"]["entries"] == 280
    loaded.to_lora(LoRAConfig(rank=4, alpha=8.0))
    save_adapter(loaded, tmp_path / "adapter", base_model="base")
    adapter = table(tmp_path / "adapter")
    assert (adapter["kind"], adapter["model"]["adapter"], adapter["model"]["rank"]) == ("PEFT adapter", "lora", 4)
    trainer = trainer_of(run_config(tmp_path / "run", steps=1, every=1, minutes=1))
    trainer.run()
    checkpoint = table(tmp_path / "run" / "checkpoint" / "step-1")
    assert (checkpoint["kind"], checkpoint["problem"]) == ("checkpoint of a run", None)
    assert checkpoint["metadata"]["step"] == 1 and checkpoint["tensors"]
    with pytest.raises(FormatError, match=r"in it there is .*checkpoint/step-1"):
        dispatch(["inspect", str(tmp_path / "run")])


@pytest.mark.unit
def test_odd_tensors_and_names_are_shown_and_steer_no_terminal(tmp_path: Path) -> None:
    arrays = {"scalar": np.float32(1), "none": np.empty((0, 3), np.float32), "[red]x\x1b[2J": np.ones((2, 2), np.int64)}
    save_safetensors(tmp_path / "x.safetensors", arrays, {"note": "[bold]\x1b]0;t\x07"})
    shown = run_entrenar("inspect", tmp_path / "x.safetensors")
    assert shown.returncode == 0 and "\x1b" not in shown.stdout and "\x07" not in shown.stdout
    assert "[red]x" in shown.stdout and "[bold]" in shown.stdout and "scalar" in shown.stdout
    found = table(tmp_path / "x.safetensors")
    assert found["metadata"] == {"note": "[bold]\x1b]0;t\x07"}
    assert {t["name"]: (t["shape"], t["bytes"]) for t in found["tensors"]}["none"] == ([0, 3], 0)


@pytest.mark.unit
def test_a_model_that_does_not_load_is_listed_with_the_reason(model: Path, tmp_path: Path) -> None:
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "mamba", "architectures": ["Mamba"]}))
    found = table(tmp_path)
    assert found["model"] == {} and "mamba" in found["problem"].lower() and len(found["tensors"]) == 21
    assert "It does not load here: " in run_entrenar("inspect", tmp_path).stdout


@pytest.mark.chaos
def test_what_is_wrong_is_one_sentence(model: Path, tmp_path: Path) -> None:
    def refused(path: Path, text: str) -> None:
        ended = run_entrenar("inspect", path)
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
        assert text in ended.stderr, ended.stderr

    refused(tmp_path / "none", "no such file or directory; expected a GGUF file")
    refused(tmp_path, "holds neither config.json")
    (tmp_path / "t.gguf").write_bytes(b"hello there, no model")
    refused(tmp_path / "t.gguf", "begins with the bytes")
    (tmp_path / "cut.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:1000])
    refused(tmp_path / "cut.safetensors", "truncated")
    ended = run_entrenar("inspect", model, "--jsn")
    assert ended.returncode == 2 and "did you mean '--json'?" in ended.stderr


@pytest.mark.chaos
@pytest.mark.parametrize("name", ["state.json", "state.safetensors", "SHA256SUMS"])
def test_a_damaged_checkpoint_is_listed_and_ends_with_one_sentence(name: str, tmp_path: Path) -> None:
    trainer_of(run_config(tmp_path, steps=1, every=1, minutes=1)).run()
    path = tmp_path / "checkpoint" / "step-1"
    content = bytearray((path / name).read_bytes())
    content[-1 if name != "state.json" else content.rindex(b"1")] ^= 1  # its header and its JSON are as they were
    (path / name).write_bytes(content)
    for words in (["inspect", path], ["inspect", path, "--json"]):
        ended = run_entrenar(*words)
        assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
        assert re.search(r"error: .*step-1: is damaged \(.*checksums.*\); use another checkpoint", ended.stderr)
        assert "checkpoint of a run" in ended.stdout
    assert json.loads(ended.stdout)["problem"] in ended.stderr


@pytest.mark.chaos
def test_files_that_are_cut_end_with_one_sentence(model: Path, tmp_path: Path) -> None:
    LLaMAModel.from_pretrained(model).save_gguf(tmp_path / "m.gguf", type="Q8_0")
    trainer_of(run_config(tmp_path, steps=1, every=1, minutes=1)).run()
    path = tmp_path / "checkpoint" / "step-1"
    for file, given in ((tmp_path / "m.gguf", tmp_path / "m.gguf"), (path / "state.safetensors", path)):
        file.write_bytes(file.read_bytes()[:-40])
        ended = run_entrenar("inspect", given, "--json")
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1), ended.stderr


@pytest.mark.chaos
def test_a_header_that_promises_too_much_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "huge.gguf"
    for tensors, fields in ((1 << 60, 0), (0, 1 << 60), (1, 1)):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, tensors, fields) + struct.pack("<Q", 1 << 62) + b"x" * 64)
        with pytest.raises(EntrenarError, match="damaged"):
            dispatch(["inspect", str(path)])
