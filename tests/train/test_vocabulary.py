"""A tokenizer that is larger than its model: used where no example needs the difference, else the token is named."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from entrenar.errors import ConfigError, FormatError
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama import LLaMAModel
from entrenar.lora import LoRAConfig
from entrenar.train import TrainConfig, finetune
from entrenar.train.config import Checkpointing, Data, Training
from tests.models.builders import random_arrays, write_gguf
from tests.train.builders import SHAPE, write_examples, write_model

pytestmark = pytest.mark.unit
ONE_STEP = Training(steps=1, batch_size=2, sequence_length=64)


def with_an_extra_token(directory: Path) -> Path:
    """A model of 280 tokens whose tokenizer has a <pad> of id 280, which is its padding."""
    write_model(directory)
    file, config = directory / "tokenizer.json", directory / "tokenizer_config.json"
    table = json.loads(file.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    table["added_tokens"].append({"id": 280, "content": "<pad>", "special": True} | flags)
    file.write_text(json.dumps(table))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token": "<pad>"}))
    return directory


def run(model: Path, data: Path, output: Path, lora: LoRAConfig | None = None) -> str:
    """One step; what was printed."""
    out = io.StringIO()
    config = TrainConfig(
        training=ONE_STEP,
        data=Data(path=str(data), held_out_fraction=0.2),
        checkpointing=Checkpointing(str(output)),
        adapter=lora,
    )
    finetune(model, config, console=Console(file=out, width=300))
    return out.getvalue()


def test_a_token_that_no_example_needs_is_said_and_the_run_goes_on(tmp_path: Path) -> None:
    model = with_an_extra_token(tmp_path / "model")
    data = write_examples(tmp_path / "examples.jsonl")
    printed = run(model, data, tmp_path / "run", LoRAConfig(rank=2))
    assert "The tokenizer has 281 entries and the model 280: '<pad>' cannot be used, and no example does." in printed


def test_an_example_that_needs_it_is_named_with_the_token(tmp_path: Path) -> None:
    model = with_an_extra_token(tmp_path / "model")
    data = write_examples(tmp_path / "examples.jsonl")
    lines = data.read_text().splitlines()
    lines[7] = json.dumps({"prompt": "What is <pad>?", "completion": "Nothing."})
    data.write_text("\n".join(lines))
    with pytest.raises(FormatError, match=r": has the token '<pad>' \(id 280\), and the model has 280 tokens"):
        run(model, data, tmp_path / "run", LoRAConfig(rank=2))
    assert not (tmp_path / "run" / "adapter").exists()


def test_full_training_over_factors_that_no_directory_expresses_is_refused_before_it_starts(tmp_path: Path) -> None:
    config = replace(SHAPE, vocab_size=280, intermediate_size=128, max_position_embeddings=128)
    factors = np.linspace(1, 7, config.head_size // 2).astype(np.float32)
    write_gguf(tmp_path / "m.gguf", config, random_arrays(config), extra={"rope_freqs.weight": factors})
    data = write_examples(tmp_path / "examples.jsonl")
    with pytest.raises(
        ConfigError, match=r"m\.gguf: rope_freqs: config\.json has no place for .*; keep an adapter over that file"
    ):
        run(tmp_path / "m.gguf", data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_full_training_keeps_the_files_of_the_tokenizer_as_they_came(tmp_path: Path) -> None:
    model = with_an_extra_token(tmp_path / "model")
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    (model / "generation_config.json").write_text('{"eos_token_id": [0, 3], "temperature": 0.6}')
    run(model, write_examples(tmp_path / "examples.jsonl"), tmp_path / "run")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "run" / "model" / file).read_bytes() == (model / file).read_bytes()
    saved = json.loads((tmp_path / "run" / "model" / "generation_config.json").read_text())
    assert saved == {"eos_token_id": [0, 3], "temperature": 0.6}
    again = LLaMAModel.from_pretrained(tmp_path / "run" / "model")
    assert again.generation.end_tokens == (0, 3)
    assert Tokenizer.from_directory(tmp_path / "run" / "model").vocab_size == 281
