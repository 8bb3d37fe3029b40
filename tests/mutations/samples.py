"""The sound files that are mutated: as small as they can be, with everything in them that has a meaning."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from entrenar.io.tokenizer import Tokenizer
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import LoRAConfig, save_adapter
from entrenar.train import TrainConfig, finetune
from entrenar.train.config import Checkpointing, Data, Training
from tests.models.builders import random_arrays, write_gguf, write_hf

SUMS = [(a, b) for a in range(4) for b in range(4)]
ROPE = {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
RUN = """[model]
vocab_size = 280
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 4
rope_theta = 10000.0
tie_word_embeddings = true

[training]
steps = 10
batch_size = 2
sequence_length = 64
learning_rate = 1e-3
optimizer = "adamw"

[lr_schedule]
name = "warmup_cosine"
warmup_steps = 2

[data]
path = "data.jsonl"
held_out_fraction = 0.2
packing = true

[checkpointing]
directory = "outputs"
every = 5

[qlora]
rank = 4
alpha = 8.0
target_modules = ["q_proj", "layers.0.mlp.up_proj"]
rank_pattern = {q_proj = 2}
"""


def tokenizer() -> Tokenizer:
    return Tokenizer.train([f"What is {a} plus {b}? {a} plus {b} is {a + b}." for a, b in SUMS], 280)


def shape(**changes: int) -> LLaMAConfig:
    sizes = {"vocab_size": 280, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 128}
    return LLaMAConfig(**(sizes | heads | changes))


def model(folder: Path, shards: int = 1) -> None:
    """A Hugging Face directory with a tokenizer."""
    config = shape(eos_token_id=2)
    write_hf(folder / "model", config, random_arrays(config), "float16", shards)
    table = json.loads((folder / "model" / "config.json").read_text())
    table |= {"eos_token_id": [2, 0], "bos_token_id": None, "torch_dtype": "float16", "hidden_act": "silu"}
    table |= {"rope_scaling": ROPE | {"original_max_position_embeddings": 64}, "attention_bias": False}
    (folder / "model" / "config.json").write_text(json.dumps(table))
    tokenizer().save(folder / "tokenizer")
    for file in (folder / "tokenizer").iterdir():
        shutil.copy(file, folder / "model")
    shutil.rmtree(folder / "tokenizer")


def gguf(folder: Path) -> None:
    """Every matrix of another type, and a tokenizer."""
    kinds = {"attn": "Q8_0", "mlp": "Q4_1", "embed": "F16"}
    trained = json.loads(tokenizer().backend.to_str())["model"]
    config = shape()
    tokens = list(trained["vocab"])
    tokens += [f"<unused{index}>" for index in range(config.vocab_size - len(tokens))]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in trained["merges"]],
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_gguf(
        folder / "model.gguf",
        config,
        random_arrays(config),
        lambda name: next((kind for part, kind in kinds.items() if part in name), "F32"),
        metadata=metadata,
    )


def adapter(folder: Path) -> None:
    model(folder)
    trained = LLaMAModel.from_pretrained(folder / "model")
    trained.to_lora(LoRAConfig(rank=2, target_modules=["q_proj", "layers.0.mlp.up_proj"], rank_pattern={"q_proj": 3}))
    save_adapter(trained, folder / "adapter")


def data(folder: Path) -> None:
    """Each format once, as JSON and as JSON Lines; the tokenizer to encode them with."""
    model(folder)
    sums = [f"{a} plus {b} is {a + b}." for a, b in SUMS]
    turns = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1?"}]
    records = [
        {"prompt": "What is 1 plus 2?", "completion": sums[1]},
        {"instruction": "Add.", "input": "1 2", "output": sums[2]},
        {"messages": [*turns, {"role": "assistant", "content": sums[3]}]},
        {"conversations": [{"from": "human", "value": "1?"}, {"from": "gpt", "value": sums[4]}]},
    ]
    (folder / "data.json").write_text(json.dumps(records))
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")


def checkpoint(folder: Path) -> None:
    """A run of two steps that is to go on to a third, and what comes of it."""
    model(folder)
    records = [{"prompt": f"What is {a} plus {b}?", "completion": f"{a} plus {b} is {a + b}."} for a, b in SUMS]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")

    def run(steps: int, directory: Path, resume: bool) -> None:
        config = TrainConfig(
            training=Training(steps=steps, batch_size=2, sequence_length=48, threads=1),
            data=Data(path=str(folder / "data.jsonl"), held_out_fraction=0.2),
            adapter=LoRAConfig(rank=2),
            checkpointing=Checkpointing(str(directory), 1, resume, minutes=0, keep=1),
        )
        finetune(folder / "model", config, console=Console(file=io.StringIO()))

    run(2, folder / "run", False)
    shutil.copytree(folder / "run", folder / "again")
    run(3, folder / "again", True)
    shutil.copy(folder / "again" / "adapter" / "adapter_model.safetensors", folder / "resumed.safetensors")
    shutil.rmtree(folder / "again")


def toml(folder: Path) -> None:
    """A configuration with every section."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.toml").write_text(RUN)


SAMPLES: dict[str, Callable[[Path], None]] = {
    "gguf": gguf,
    "safetensors": model,
    "safetensors index": lambda folder: model(folder, shards=2),
    "config.json": model,
    "tokenizer.json": model,
    "tokenizer_config.json": model,
    "adapter": adapter,
    "checkpoint": checkpoint,
    "checkpoint, summed again": checkpoint,
    "JSON": data,
    "JSON Lines": data,
    "TOML": toml,
}
