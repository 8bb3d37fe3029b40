"""Training from scratch: a tokenizer and a model of a given shape, on plain text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from entrenar._kernels import cpu
from entrenar.data import (
    DataLoader,
    documentation_examples,
    evaluation_batches,
    read_examples,
    split_held_out,
    text_windows,
)
from entrenar.errors import ConfigError
from entrenar.io.tokenizer import Tokenizer
from entrenar.llama.budget import available_memory
from entrenar.llama.config import LLaMAConfig
from entrenar.llama.model import LLaMAModel
from entrenar.train import report
from entrenar.train.config import TrainConfig
from entrenar.train.evaluate import Evaluation, evaluate
from entrenar.train.memory import check_budget, estimate
from entrenar.train.trainer import StepReport, Trainer

PROMPT = "The value of"
SAMPLE_TOKENS = 48


@dataclass(frozen=True)
class ScratchResult:
    """Held-out evaluations before and after, where the model is, and a report for each step."""

    before: Evaluation
    after: Evaluation
    output: Path
    reports: list[StepReport]


def train_from_scratch(shape: LLaMAConfig, config: TrainConfig, console: Console | None = None) -> ScratchResult:
    """Train a tokenizer of `shape.vocab_size` entries and a model of `shape` on the text of [data]; write both.

    Raises ConfigError where adapters are configured (there is no base to adapt) or the text is too short.
    """
    console = console or Console()
    if config.adapter is not None:
        raise ConfigError("[lora] and [qlora] need a pretrained base; remove the section to train from scratch.")
    t = config.training
    if t.threads:
        cpu.set_num_threads(t.threads)
    if t.sequence_length > shape.max_position_embeddings:
        raise ConfigError(
            f"training.sequence_length is {t.sequence_length}, longer than model.max_position_embeddings = "
            f"{shape.max_position_embeddings}."
        )
    on = t.gradient_checkpointing == "on"
    sizes = {"lora": None, "optimizer": t.optimizer, "batch_size": t.batch_size, "sequence_length": t.sequence_length}
    needed = estimate(shape, checkpointing=on, **sizes)  # type: ignore[arg-type]
    if t.gradient_checkpointing == "auto" and needed.total > available_memory():
        on, needed = True, estimate(shape, checkpointing=True, **sizes)  # type: ignore[arg-type]
    check_budget(needed)
    examples = documentation_examples() if config.data.path is None else read_examples(config.data.path)
    if config.data.max_examples:
        examples = examples[: config.data.max_examples]
    training, held_out = split_held_out(examples, config.data.held_out_fraction)
    texts = [["\n".join(message["content"] for message in e.messages) for e in part] for part in (training, held_out)]
    tokenizer = Tokenizer.train(texts[0], shape.vocab_size)
    if tokenizer.vocab_size != shape.vocab_size:
        raise ConfigError(
            f"The text yields a vocabulary of {tokenizer.vocab_size} entries, fewer than model.vocab_size = "
            f"{shape.vocab_size}; lower it or give more text."
        )
    shape = replace(shape, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id)
    windows = [text_windows(part, tokenizer, t.sequence_length) for part in texts]
    if not windows[0] or not windows[1]:
        raise ConfigError("The text is too short for one row to train on and one to hold out; give more text.")
    pad = tokenizer.pad_id or 0
    loader = DataLoader(
        windows[0], t.batch_size, t.sequence_length, seed=t.seed, packing=config.data.packing, pad_id=pad
    )
    batches = list(evaluation_batches(windows[1], t.batch_size, t.sequence_length, config.data.packing, pad))
    model = LLaMAModel(shape, seed=t.seed)
    model.gradient_checkpointing = on
    trainer = Trainer(model, config, loader, batches)
    report.facts(
        console,
        "Training from scratch",
        {
            "threads": str(cpu.get_num_threads()),
            "SIMD tier": cpu.tier(),
            "trainable parameters": f"{shape.num_parameters():,} (100 %)",
            "estimated peak memory": f"{report.gib(needed.total)} of {report.gib(available_memory())} available",
            "vocabulary": f"{tokenizer.vocab_size:,} tokens",
            "steps": f"{t.steps} of {t.batch_size * t.gradient_accumulation} x {t.sequence_length} tokens",
        },
    )
    before = evaluate(model, batches)
    with report.steps(console, t.steps, trainer.step) as display:
        trainer.on_step = display
        reports = trainer.run()
    after = evaluate(model, batches)
    directory = Path(config.checkpointing.directory)
    output = directory / "model"
    model.save_pretrained(output)
    tokenizer.save(output)
    report.write_metrics(directory / "metrics.csv", reports)
    report.comparison(console, before, after)
    answer = model.generate(tokenizer.encode(PROMPT), max_new_tokens=SAMPLE_TOKENS, stop=(tokenizer.eos_id or 0,))
    console.print(f"[bold]Sample:[/bold] {escape(PROMPT + tokenizer.decode(answer))}")
    console.print(f"[bold]Written:[/bold] {escape(str(output))} and {escape(str(directory / 'metrics.csv'))}")
    return ScratchResult(before, after, output, reports)
