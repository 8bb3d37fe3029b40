"""Training from scratch: a tokenizer and a model of a given shape, on plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from entrenar.config import toml_value
from entrenar.data import DataReport, Example, Sample, SideReport, text_windows
from entrenar.data.sources import unweighted
from entrenar.errors import ConfigError
from entrenar.io.tokenizer import Tokenizer
from entrenar.models.api import LLaMAModel
from entrenar.models.config import LLaMAConfig
from entrenar.train import report, run
from entrenar.train.callbacks import Record
from entrenar.train.config import TrainConfig
from entrenar.train.dataset import source_name, split_examples
from entrenar.train.memory import plan
from entrenar.train.summary import Summary
from entrenar.train.trainer import Trainer
from entrenar.train.written import to_run_again, whole_toml

PROMPT = "The value of"
SAMPLE_TOKENS = 48


def pretrain(shape: LLaMAConfig, config: TrainConfig, console: Console | None = None) -> run.Result:
    """Train a tokenizer and a model of `shape` on the text of [data]; write both.

    The tokenizer has `shape.vocab_size` entries, or as many as the text yields: the model keeps the rows of its shape.

    Raises ConfigError where adapters are configured (there is no base to adapt) or the text is too short.
    """
    console = console or report.Output()
    t = config.training
    if config.adapter is not None:
        raise ConfigError(
            f"[{config.adapter.section}] needs a pretrained base; remove the section to train from scratch."
        )
    if t.sequence_length > shape.context:
        raise ConfigError(
            f"training.sequence_length is {t.sequence_length}, longer than model.max_position_embeddings = "
            f"{shape.context}."
        )
    _check_used(config)
    with run.prepared(config, console) as config:
        return _train(shape, config, console)


def _train(shape: LLaMAConfig, config: TrainConfig, console: Console) -> run.Result:
    t = config.training
    checkpointing, needed = plan(shape, config)
    with console.status("reading the text and making a tokenizer of it"):
        sides = split_examples(config)
        tokenizer = Tokenizer.train(_texts(sides[0], SideReport()), shape.vocab_size)
        reports = SideReport(), SideReport()
        (samples, rest), (held_out, held_out_rest) = (
            text_windows(_texts(side, read), tokenizer, t.sequence_length, config.checkpointing.directory)
            for side, read in zip(sides, reports, strict=True)
        )
    if not samples or (sides[1] and not held_out):
        raise ConfigError(
            f"{source_name(config, 'The documentation')}: is too short for a row of {t.sequence_length} tokens to "
            "train on and one to hold out; give more text, a shorter training.sequence_length or another "
            "data.held_out_fraction."
        )
    summary = _summary(config, reports, (samples, held_out), rest + held_out_rest)
    loader, batches = run.batches(config, samples, held_out, tokenizer.pad_id)
    _check_special_tokens(shape, tokenizer)
    model = LLaMAModel(replace(shape, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id), seed=t.seed)
    model.gradient_checkpointing = checkpointing
    record = Record(Path(config.checkpointing.directory), summary, whole_toml(to_run_again(config), shape))
    trainer = Trainer(model, config, loader, batches, run.callbacks(config, record, console))
    rows = run.summary_rows(trainer, f"{shape.num_parameters():,} (100 %)", needed)
    report.summary(console, "Training from scratch", rows | {"vocabulary": f"{tokenizer.vocab_size:,} tokens"})
    summary.estimate = needed.items
    summary.remarks += _unused_rows(tokenizer, shape)
    few = report.held_out_size(sum(batch.trained_tokens for batch in batches)) if batches else None
    summary.remarks += [few] if few else []
    report.remarks(console, summary.remarks)

    def save(output: Path) -> None:
        model.save_pretrained(output, tokenizer=tokenizer)

    return run.execute(
        trainer,
        output=Path(config.checkpointing.directory) / "model",
        save=save,
        prompt=PROMPT,
        sample=lambda: _sample(model, tokenizer),
        record=record,
        console=console,
    )


def _check_used(config: TrainConfig) -> None:
    """ConfigError for a key of [data] that is about prompts and answers, and that whole texts have no use for."""
    if config.preference.method != "none":
        raise ConfigError(
            f"preference.method is {config.preference.method}, which training from scratch does not use; leave it out."
        )
    if config.data.path is not None:
        unweighted(config.data.path, "training from scratch")
    for key, default in (("train_on_prompt", False), ("packing", True), ("answers", "all"), ("too_long", "auto")):
        value = getattr(config.data, key)
        if value != default:
            raise ConfigError(
                f"data.{key} is {toml_value(value).strip(chr(34))}, which training from scratch does not use; "
                "leave it out."
            )


def _check_special_tokens(shape: LLaMAConfig, tokenizer: Tokenizer) -> None:
    for key, actual in (("bos_token_id", tokenizer.bos_id), ("eos_token_id", tokenizer.eos_id)):
        if getattr(shape, key) not in (None, actual):
            raise ConfigError(
                f"model.{key} is {getattr(shape, key)}, and the tokenizer made of the text has {actual}; leave it out."
            )


def _texts(examples: Iterable[Example], read: SideReport) -> Iterator[str]:
    """Prompts and answers as plain texts, counted in `read`; ConfigError for what a plain text has no place for."""
    for example in examples:
        calls = any(message.get("tool_calls") for message in example.messages)
        for name, there in (("marks of training", example.marked), ("tools", example.tools), ("tool_calls", calls)):
            if there:
                raise ConfigError(
                    f"{example.where}: has {name}, which training from scratch on plain text does not use; leave them "
                    "out."
                )
        read.count(example)
        yield example.text


def _summary(
    config: TrainConfig,
    reports: tuple[SideReport, SideReport],
    rows: tuple[Sequence[Sample], Sequence[Sample]],
    rest: int,
) -> Summary:
    """What became of the texts."""
    for read, samples in zip(reports, rows, strict=True):
        read.count_samples(samples)
    data = DataReport(source_name(config), config.training.sequence_length, *reports)
    left = [f"{rest} tokens at the end of the text are left out: they fill no row."] if rest else []
    return Summary([*data.remarks(), *left], data.table())


def _unused_rows(tokenizer: Tokenizer, shape: LLaMAConfig) -> list[str]:
    """What is said where the text yields fewer tokens than the shape has rows."""
    left = shape.vocab_size - tokenizer.vocab_size
    if not left:
        return []
    return [
        f"The text yields {tokenizer.vocab_size:,} tokens; {left:,} rows of model.vocab_size = {shape.vocab_size:,} "
        "stay unused."
    ]


def _sample(model: LLaMAModel, tokenizer: Tokenizer) -> str:
    """How the model goes on from PROMPT."""
    prompt = tokenizer.encode(PROMPT)
    new = max(0, min(SAMPLE_TOKENS, model.config.context - len(prompt)))
    return tokenizer.decode(model.generate(prompt, max_new_tokens=new, stop=(tokenizer.eos_id or 0,)))
