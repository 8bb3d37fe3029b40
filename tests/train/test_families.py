"""Runs over models of families beside LLaMA: what they write is read by PEFT and transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from entrenar.llama import LLaMAModel
from entrenar.lora import load_adapter

from .builders import metrics, run_entrenar, write_examples, write_model

pytestmark = pytest.mark.peers
SETTINGS = ("--steps", "3", "--batch-size", "2", "--sequence-length", "64", "--learning-rate", "0.01")


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma3_text", "olmo2"])
@pytest.mark.parametrize("adapter", ["qlora", "none"])
def test_a_run_over_another_family_is_read_by_its_peers(adapter: str, family: str, tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    base, output = write_model(tmp_path / "base", family), tmp_path / "run"
    data = write_examples(tmp_path / "examples.jsonl")
    files = ("--model", base, "--data", data, "--output", output, "--adapter", adapter)
    run = run_entrenar("finetune", *files, *SETTINGS)
    assert (run.returncode, run.stderr) == (0, "")
    assert [row["step"] for row in metrics(output)] == ["1", "2", "3"]
    tokens = np.array([[5, 9, 33, 2, 44, 61, 7, 7, 12, 30]])
    if adapter == "none":
        ours = LLaMAModel.from_pretrained(output / "model")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(output / "model", dtype=torch.float32)
    else:
        ours = LLaMAModel.from_pretrained(base)
        load_adapter(ours, output / "adapter")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        theirs = peft.PeftModel.from_pretrained(theirs, output / "adapter").eval()
    assert ours.config.family == family
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(ours(tokens).numpy(), expected, rtol=0, atol=1e-4)
