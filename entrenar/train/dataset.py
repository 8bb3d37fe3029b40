"""A run's examples: read and split, encoded, what became of them, and what they need of the memory."""

from __future__ import annotations

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


def split_examples(config: TrainConfig) -> tuple[Subset, Subset]:
    """(to train on, held out) of the file, or of the library's documentation; every record of it has been checked.

    Nothing is held out where data.held_out_fraction is 0; else ConfigError where one side is empty.
    """
    data = config.data
    examples = documentation_examples() if data.path is None else ExampleFile(data.path)
    count = min(len(examples), data.max_examples or len(examples))
    whole = Subset(examples, np.arange(count))
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


def encode(config: TrainConfig, tokenizer: Tokenizer, vocabulary: int) -> Dataset:
    """The run's examples as tokens of a model that has `vocabulary` of them.

    Raises ConfigError where one side has nothing that is trained, with what was left out, and FormatError for an
    example whose tokens the model lacks.
    """

    length, prompts = config.training.sequence_length, config.data.train_on_prompt
    shown: list[Example] = []  # the first of each side that is used

    def side_of(examples: Subset) -> tuple[Samples, SideReport]:
        fresh = True

        def check(example: Example, sample: Sample) -> None:
            nonlocal fresh
            check_vocabulary([example], [sample], tokenizer, vocabulary)
            if fresh:
                shown.append(example)
                fresh = False

        return encode_examples(examples, tokenizer, length, train_on_prompt=prompts, check=check)

    sides = split_examples(config)
    (training, trained), (held_out, evaluated) = side_of(sides[0]), side_of(sides[1])
    report = DataReport(config.data.path or DOCUMENTATION, length, trained, evaluated)
    for samples, side, kind in ((training, sides[0], ""), (held_out, sides[1], "held-out ")):
        if len(side) and not samples:
            raise ConfigError(
                f"{report.source}: none of its {len(side)} {kind}examples has a token that is trained: "
                f"{' '.join(report.notes())} Give a longer training.sequence_length, "
                "other examples or another data.held_out_fraction."
            )
    return Dataset(training, held_out, shown[-1], report)
