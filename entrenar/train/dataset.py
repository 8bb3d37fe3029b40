"""A run's examples: read and split, encoded, what became of them, and what they need of the memory."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from entrenar.data import (
    DataReport,
    Example,
    ExampleFile,
    Sample,
    Samples,
    SideReport,
    Subset,
    digest,
    digests,
    documentation_examples,
    encode_examples,
    split_indices,
)
from entrenar.errors import ConfigError
from entrenar.io.tokenizer import Tokenizer
from entrenar.train.config import TrainConfig
from entrenar.train.vocabulary import check_vocabulary

DOCUMENTATION = "the documentation"


def _all_examples(config: TrainConfig) -> tuple[Subset, ExampleFile | list[Example]]:
    """The examples that are used, and the source that they are of."""
    data = config.data
    examples = documentation_examples() if data.path is None else ExampleFile(data.path)
    return Subset(examples, np.arange(min(len(examples), data.max_examples or len(examples)))), examples


def split_examples(config: TrainConfig) -> tuple[Subset, Subset]:
    """(to train on, held out) of the file, or of the library's documentation; every record of it has been checked.

    With data.eval_path the examples of that file are held out, and all others are trained on.

    Nothing is held out where data.held_out_fraction is 0; else ConfigError where one side is empty.
    """
    data = config.data
    whole, examples = _all_examples(config)
    if data.eval_path is not None:
        others = ExampleFile(data.eval_path)
        return whole, Subset(others, np.arange(len(others)))
    count = len(whole)
    training, held_out = split_indices(digests(whole), data.held_out_fraction)
    if data.held_out_fraction and not len(held_out):
        found = "has one example" if count == 1 else f"has {count} examples, all of the same text"
        raise ConfigError(
            f"{data.path or 'The documentation'}: {found}, which cannot be both trained on and held out; give more "
            "examples, or data.held_out_fraction = 0."
        )
    return Subset(examples, training), Subset(examples, held_out)


@dataclass
class Dataset:
    """Samples to train on and held-out ones, an example to show, and the report."""

    training: Samples
    held_out: Samples
    shown: Example
    report: DataReport


@dataclass
class _Side:
    """One side's samples, what became of the rest, the digest of each sample's text, and the first example used."""

    examples: Subset
    samples: Samples
    report: SideReport
    hashes: np.ndarray
    first: Example | None


def encode(config: TrainConfig, tokenizer: Tokenizer, vocabulary: int) -> Dataset:
    """The run's examples as tokens of a model that has `vocabulary` of them.

    Raises ConfigError where one side has nothing that is trained, with what was left out, and FormatError for an
    example whose tokens the model lacks.
    """
    training, held_out = (_encode_side(side, config, tokenizer, vocabulary) for side in split_examples(config))
    report = DataReport(
        config.data.path or DOCUMENTATION, config.training.sequence_length, training.report, held_out.report
    )
    if config.data.eval_path is not None:
        report.evaluated = config.data.eval_path
        report.shared = int(np.isin(held_out.hashes, training.hashes).sum())
    elif len(held_out.examples) and not held_out.samples:
        _hold_out_others(training, held_out, config.data.held_out_fraction)
    for side, kind in ((training, ""), (held_out, "held-out ")):
        source = (report.evaluated if kind else "") or report.source
        if len(side.examples) and not side.samples:
            raise ConfigError(
                f"{source}: none of its {len(side.examples)} {kind}examples has a token that is trained: "
                f"{' '.join(report.remarks())} Give a longer training.sequence_length, other examples or another "
                "data.held_out_fraction."
            )
    shown = held_out.first or training.first
    assert shown is not None  # held above
    return Dataset(training.samples, held_out.samples, shown, report)


def held_out(config: TrainConfig, tokenizer: Tokenizer, vocabulary: int, *, whole: bool) -> Samples:
    """The held-out examples of the file, or all with `whole`, as tokens; raises as `encode`."""
    examples = _all_examples(config)[0] if whole else split_examples(config)[1]
    side = _encode_side(examples, config, tokenizer, vocabulary)
    if not side.samples:
        raise ConfigError(
            f"{config.data.path}: none of its {len(examples)} examples has a token that is trained: give a longer "
            "sequence length or other examples."
        )
    return side.samples


def _encode_side(examples: Subset, config: TrainConfig, tokenizer: Tokenizer, vocabulary: int) -> _Side:
    first, hashes = None, array("Q")

    def check(example: Example, sample: Sample) -> None:
        nonlocal first
        check_vocabulary([example], [sample], tokenizer, vocabulary)
        first = first or example
        hashes.append(digest(example.text))

    samples, report = encode_examples(
        examples,
        tokenizer,
        config.training.sequence_length,
        train_on_prompt=config.data.train_on_prompt,
        last_answer=config.data.answers == "last",
        too_long=config.data.too_long,
        check=check,
    )
    return _Side(examples, samples, report, np.array(hashes, np.uint64), first)


def _hold_out_others(training: _Side, held_out: _Side, fraction: float) -> None:
    """Hold out samples of the training side, chosen alike, where all that were to be held out are left out."""
    kept, moved = split_indices(training.hashes, fraction)
    if not len(kept) or not len(moved):
        return
    chosen = set(training.hashes[moved].tolist())
    held_out.first = next(example for example in training.examples if digest(example.text) in chosen)
    whole = training.samples
    training.samples, held_out.samples = (Samples(whole[i] for i in side) for side in (kept, moved))
    training.report.examples -= len(moved)
    held_out.report.examples += len(moved)
    for side in (training, held_out):
        side.report.count_samples(side.samples)
