"""A QLoRA run over a GGUF file whose quantized values become others says so before it trains, and in its summary."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from entrenar.qlora import QLoRAConfig
from tests.models.builders import random_arrays, small_config, write_gguf
from tests.train.builders import SMALL, config_for, quiet, write_examples, write_model


def gguf_of(directory: Path, path: Path) -> Path:
    """A model with the tokenizer of `directory`, its feed-forward matrices in IQ3_S, for which there is no layer."""
    table = json.loads((directory / "tokenizer.json").read_text())
    added = {entry["id"]: entry["content"] for entry in table["added_tokens"]}
    tokens = {index: token for token, index in table["model"]["vocab"].items()} | added
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [tokens[index] for index in sorted(tokens)],
        "tokenizer.ggml.token_type": [3 if index in added else 1 for index in sorted(tokens)],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in table["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": min(added),
        "tokenizer.chat_template": json.loads((directory / "tokenizer_config.json").read_text())["chat_template"],
    }
    config = small_config(hidden_size=256, intermediate_size=256, num_hidden_layers=1, vocab_size=len(tokens))
    write_gguf(path, config, random_arrays(config), lambda name: "IQ3_S" if "mlp" in name else "F16", metadata=metadata)
    return path


@pytest.mark.unit
def test_what_requantizing_costs_is_said_before_training_and_in_the_summary(tmp_path: Path) -> None:
    model = gguf_of(write_model(tmp_path / "source"), tmp_path / "m.gguf")
    data = write_examples(tmp_path / "examples.jsonl")
    config = config_for(data, tmp_path / "run", replace(SMALL, steps=1), adapter=QLoRAConfig(rank=2))
    _, printed = quiet(model, config)
    names = "blk.*.ffn_gate.weight, blk.*.ffn_up.weight and blk.*.ffn_down.weight"
    said = f"3 matrices of type IQ3_S ({names}) are requantized to NF4, which changes their values by "
    assert printed.index(said) < printed.index("step 1/1")
    remarks = json.loads((tmp_path / "run" / "summary.json").read_text())["remarks"]
    assert any(remark.startswith(said) and "--no-quantize-4bit" in remark for remark in remarks)
