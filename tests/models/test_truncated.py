"""A model's file that is cut off while a run has it mapped: one sentence with its name, whatever holds the weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .builders import random_arrays, small_config, write_gguf, write_hf

RUN = """
import os, sys
import numpy as np
from entrenar.llama import LLaMAModel
path, file, quantize = sys.argv[1:]
model = LLaMAModel.from_pretrained(path, quantize=quantize or None, dtype="auto")
tokens = np.arange(32)[None]
model(tokens)
os.truncate(file, 8192)
print("cut", flush=True)
model(tokens)
print("alive", flush=True)
"""


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["Q4_1", "BF16", "safetensors"])
def test_a_model_that_is_cut_off_under_a_run_ends_it_with_a_sentence(kind: str, tmp_path: Path) -> None:
    config = small_config(hidden_size=256, intermediate_size=512, num_hidden_layers=2)
    if kind == "safetensors":
        path = tmp_path / "hf"
        write_hf(path, config, random_arrays(config), "bfloat16")
        file = path / "model.safetensors"
    else:
        path = file = tmp_path / "model.gguf"
        write_gguf(path, config, random_arrays(config), kind)
    command = [sys.executable, "-c", RUN, str(path), str(file), "auto" if kind == "Q4_1" else ""]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "cut\n"), done.stderr[-500:]
    assert done.stderr.strip().startswith(f"error: {file}: was cut off while it was in use")
    assert len(done.stderr.strip().splitlines()) == 1
