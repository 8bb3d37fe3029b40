"""Load mutated files, go as far as a training step, and say of each what became of it; a process of its own.

    python worker.py KIND SAMPLE FOLDER FIRST LAST

SAMPLE holds the sound files. Each case is written below FOLDER and removed, unless something was wrong with it. One
JSON line says that a case begins, another how it ended: "loaded", "refused" or "wrong".
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import resource
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mutate import mutated
from rich.console import Console

from entrenar.data import encode_example, read_examples
from entrenar.errors import EntrenarError
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import LoRAConfig, load_adapter, merge
from entrenar.models.checkpoint import Checkpoint
from entrenar.optim import AdamW
from entrenar.train import TrainConfig, finetune
from entrenar.train.config import Checkpointing, Data, Training
from entrenar.train.memory import plan

MORE_MEMORY = 1 << 30  # beyond what the process has when it starts
LONGEST_SENTENCE = 1000
TEXTS = ("What is 1 plus 2?", "\u00fc \u4e2d \U0001f600\n\t<|im_end|>", "")
TURNS = [{"role": "user", "content": "What is 1 plus 2?"}, {"role": "assistant", "content": "3"}]


class Wrong(Exception):
    """What was loaded is not what was in the files."""


# ---------------------------------------------------------------------- one function a kind
def train(model: LLaMAModel) -> None:
    """One step on a few tokens; a loss that is no number is for the trainer to stop, and it does."""
    if model.adapter_config is None and any(w.dtype != "float32" for _, w in model.named_parameters()):
        model.to_lora(LoRAConfig(rank=2))
    optimizer = AdamW(model.trainable_parameters(), lr=1e-3)
    tokens = np.arange(12).reshape(2, 6) % model.config.vocab_size
    loss = model.loss(tokens, tokens)
    if not math.isfinite(loss.item()):
        return
    loss.backward()
    optimizer.step()


def use(tokenizer: Tokenizer) -> None:
    """Texts to ids and back, and through the template."""
    for text in TEXTS:
        ids = tokenizer.encode(text)
        if not all(isinstance(index, int) and 0 <= index < 2**31 for index in ids):
            raise Wrong(f"the ids of {text!r} are {ids[:5]}")
        tokenizer.decode(ids)
    if tokenizer.chat_template is not None:
        tokenizer.apply_chat_template(TURNS)
        tokenizer.apply_chat_template(TURNS[:1], add_generation_prompt=True)


def gguf(folder: Path) -> None:
    train(LLaMAModel.from_pretrained(folder / "model.gguf", quantize="auto"))
    use(Checkpoint.open(folder / "model.gguf").tokenizer())


def model_directory(folder: Path) -> None:
    train(LLaMAModel.from_pretrained(folder / "model"))


def tokenizer_directory(folder: Path) -> None:
    use(Tokenizer.from_directory(folder / "model"))


def adapter(folder: Path) -> None:
    model = LLaMAModel.from_pretrained(folder / "model")
    load_adapter(model, folder / "adapter")
    train(model)
    merge(model)


def go_on(folder: Path) -> bytes:
    """The adapter that a run gives which goes on from the checkpoint."""
    config = TrainConfig(
        training=Training(steps=3, batch_size=2, sequence_length=48, threads=1),
        data=Data(path=str(folder / "data.jsonl"), held_out_fraction=0.2),
        adapter=LoRAConfig(rank=2),
        checkpointing=Checkpointing(str(folder / "run"), 1, True, minutes=0, keep=1),
    )
    finetune(folder / "model", config, console=Console(file=io.StringIO()))
    return (folder / "run" / "adapter" / "adapter_model.safetensors").read_bytes()


def checkpoint(folder: Path) -> None:
    """What differs in a bit is noticed: the run goes on to the adapter of the sound checkpoint, or not at all."""
    if go_on(folder) != (folder / "resumed.safetensors").read_bytes():
        raise Wrong("the run went on to another adapter")


def summed_checkpoint(folder: Path) -> None:
    """Whoever changes a checkpoint can write its sums as well: what is below them holds by itself."""
    for sums in (folder / "run").rglob("SHA256SUMS"):
        files = sorted(file for file in sums.parent.iterdir() if file != sums)
        lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
        sums.write_text("".join(lines))
    go_on(folder)


def examples(path: Path) -> None:
    tokenizer = Tokenizer.from_directory(path.parent / "model")
    for example in read_examples(path):
        sample = encode_example(example, tokenizer)
        if len(sample.tokens) != len(sample.trained):
            raise Wrong("tokens and mask differ in length")


def toml(folder: Path) -> None:
    config, shape = TrainConfig.from_file(folder / "run.toml"), LLaMAConfig.from_file(folder / "run.toml")
    plan(shape, config)


LOADERS: dict[str, Callable[[Path], None]] = {
    "gguf": gguf,
    "safetensors": model_directory,
    "safetensors index": model_directory,
    "config.json": model_directory,
    "tokenizer.json": tokenizer_directory,
    "tokenizer_config.json": tokenizer_directory,
    "adapter": adapter,
    "checkpoint": checkpoint,
    "checkpoint, summed again": summed_checkpoint,
    "JSON": lambda folder: examples(folder / "data.json"),
    "JSON Lines": lambda folder: examples(folder / "data.jsonl"),
    "TOML": toml,
}


# ---------------------------------------------------------------------- the cases
def outcome(kind: str, folder: Path) -> tuple[str, str]:
    """("loaded", "refused" or "wrong", what to say of it)."""
    try:
        LOADERS[kind](folder)
    except EntrenarError as error:
        text = str(error)
        if not text.isprintable() or not text.endswith((".", "?")) or len(text) > LONGEST_SENTENCE:
            return "wrong", f"no sentence of one line: {type(error).__name__}: {text[:400]!r}"
        return "refused", text
    except BaseException as error:  # a panic of a library written in Rust is no Exception
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = repr(str(error))[:300]
        return "wrong", f"{type(error).__name__}: {text} ({Path(where.filename).name}, line {where.lineno})"
    return "loaded", ""


def bound_memory() -> None:
    """So that a length of a file that is taken for true is an error here, and nowhere else."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_MEMORY, used + MORE_MEMORY))


def main(kind: str, sample: Path, folder: Path, first: int, last: int) -> None:
    """Every case from `first` up to `last`."""
    files = {str(path.relative_to(sample)): path.read_bytes() for path in sample.rglob("*") if path.is_file()}
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is no line of ours

    def say(**values: Any) -> None:
        print(json.dumps(values), file=out, flush=True)

    np.seterr(all="ignore")
    bound_memory()
    for seed in range(first, last):
        case = folder / f"{kind.replace(' ', '-').replace(',', '')}-{seed}"
        name, data = mutated(kind, seed, files)
        for file, content in (files | {name: data}).items():
            (case / file).parent.mkdir(parents=True, exist_ok=True)
            (case / file).write_bytes(content)
        say(seed=seed, file=name)
        verdict, text = outcome(kind, case)
        say(seed=seed, file=name, verdict=verdict, text=text)
        if verdict != "wrong":
            shutil.rmtree(case)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
