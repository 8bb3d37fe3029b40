"""`entrenar merge`: an adapter into its base, as a GGUF file or a directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from entrenar.adapters.peft import load_adapter, save_adapter
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig
from tests.train.builders import run_entrenar


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    loaded = LLaMAModel.from_pretrained(model).to_lora(LoRAConfig(rank=4, alpha=8.0), seed=1)
    for _, tensor in loaded.named_parameters():
        if getattr(tensor, "requires_grad", False):
            tensor.numpy()[...] += np.float32(0.02)
    place = tmp_path_factory.mktemp("adapter") / "adapter"
    save_adapter(loaded, place)
    return place


@pytest.mark.unit
@pytest.mark.parametrize("output", ["merged", "merged.gguf"])
def test_a_merged_model_computes_as_base_and_adapter(model: Path, adapter: Path, output: str, tmp_path: Path) -> None:
    ended = run_entrenar("merge", "--model", model, "--adapter", adapter, "--output", tmp_path / output)
    assert (ended.returncode, ended.stderr) == (0, "")
    tuned = LLaMAModel.from_pretrained(model)
    load_adapter(tuned, adapter)
    tokens = np.arange(24)[None]
    expected, found = tuned(tokens).numpy(), LLaMAModel.from_pretrained(tmp_path / output)(tokens).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert not np.allclose(expected, LLaMAModel.from_pretrained(model)(tokens).numpy(), atol=1e-2)


@pytest.mark.chaos
def test_what_is_wrong_is_one_sentence(model: Path, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "there.gguf").write_bytes(b"mine")
    for words, status, text in (
        (["--model", model, "--output", "x"], 2, "required: --adapter"),
        (["--model", model, "--adapter", tmp_path / "none", "--output", tmp_path / "x"], 1, "no such file"),
        (["--model", model, "--adapter", adapter, "--output", tmp_path / "there.gguf"], 1, "is there already"),
        (["--model", model, "--adapter", adapter, "--output", model], 1, "the model that is read"),
        (["--model", model, "--adapter", adapter, "--output", tmp_path / "x", "--type", "Q8_0"], 1, "has no effect"),
    ):
        ended = run_entrenar("merge", *map(str, words))
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (status, "", 1), ended.stderr
        assert text in ended.stderr, ended.stderr
    assert (tmp_path / "there.gguf").read_bytes() == b"mine" and not (tmp_path / "x").exists()
