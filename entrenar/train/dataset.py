"""A run's examples: read and split, encoded, what became of them, and what they need of the memory."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from entrenar.data import (
    DataReport,
    Example,
    ExampleFiles,
    Mix,
    Sample,
    Samples,
    SideReport,
    Subset,
    digest,
    digests,
    documentation_examples,
    encode_examples,
    eval_sources,
    names_of,
    sources_of,
    split_files,
    split_indices,
)
from entrenar.data.encoding import file_reports
from entrenar.data.split import among
from entrenar.errors import ConfigError
from entrenar.io.tokenizer import Tokenizer
from entrenar.train.config import TrainConfig
from entrenar.train.vocabulary import check_vocabulary

DOCUMENTATION = "the documentation"


def source_name(config: TrainConfig, documentation: str = DOCUMENTATION) -> str:
    """What the examples are of: the path, the paths of several files, or the library's documentation."""
    path = config.data.path
    return documentation if path is None else names_of(sources_of(path))


def _all_examples(config: TrainConfig) -> tuple[Subset, np.ndarray]:
    """The examples that are used, and where those of each file begin, (files + 1,)."""
    data = config.data
    if data.path is None:
        texts = documentation_examples()[: data.max_examples or None]
        return Subset(texts, np.arange(len(texts))), np.array([0, len(texts)])
    examples = ExampleFiles(sources_of(data.path), data.max_examples, data.format)
    return Subset(examples, np.arange(len(examples))), examples.bounds


def split_examples(config: TrainConfig) -> tuple[Subset, Subset]:
    """(to train on, held out) of the files, each split for itself, or of the library's documentation; every record of
    them has been checked.

    With data.eval_path the examples of its files are held out, and all others are trained on.

    Nothing is held out where data.held_out_fraction is 0; else ConfigError where one side is empty.
    """
    data = config.data
    whole, bounds = _all_examples(config)
    if data.eval_path is not None:
        others = ExampleFiles(eval_sources(data.eval_path), data.max_examples, data.format)
        return whole, Subset(others, np.arange(len(others)))
    count = len(whole)
    training, held_out = split_files(digests(whole), bounds, data.held_out_fraction)
    if data.held_out_fraction and not len(held_out):
        found = "has one example" if count == 1 else f"has {count} examples, all of the same text"
        raise ConfigError(
            f"{source_name(config, 'The documentation')}: {found}, which cannot be both trained on and held out; give "
            "more examples, or data.held_out_fraction = 0."
        )
    return whole.chosen(training), whole.chosen(held_out)


@dataclass
class Dataset:
    """Samples to train on (by `mix` where files have weights), held-out ones, an example to show, and the report."""

    training: Samples
    held_out: Samples
    shown: Example
    report: DataReport
    mix: Mix | None = None


@dataclass
class _Side:
    """One side's samples, what became of the rest, the digest of each text, its file where files are several, and the
    first example."""

    examples: Subset
    samples: Samples
    report: SideReport
    hashes: np.ndarray
    files: np.ndarray
    first: Example | None


def encode(config: TrainConfig, tokenizer: Tokenizer, vocabulary: int) -> Dataset:
    """The run's examples as tokens of a model that has `vocabulary` of them.

    Raises ConfigError where one side has nothing that is trained, with what was left out, and FormatError for an
    example whose tokens the model lacks.
    """
    training, held_out = (_encode_side(side, config, tokenizer, vocabulary) for side in split_examples(config))
    report = DataReport(source_name(config), config.training.sequence_length, training.report, held_out.report)
    if config.data.eval_path is not None:
        report.evaluated = names_of(eval_sources(config.data.eval_path))
        report.shared = int(among(held_out.hashes, training.hashes).sum())
    elif len(held_out.examples) and not held_out.samples:
        _hold_out_others(training, held_out, config.data.held_out_fraction, config.checkpointing.directory)
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
    return Dataset(training.samples, held_out.samples, shown, report, _mix(config, training, report))


def _mix(config: TrainConfig, training: _Side, report: DataReport) -> Mix | None:
    """How files with weights are drawn from, None without; files are counted in `report`."""
    sources = [] if config.data.path is None else sources_of(config.data.path)
    if len(sources) < 2:
        return None
    counts = np.bincount(training.files, minlength=len(sources)).tolist()
    report.files = file_reports(sources, counts)
    weights = [source.weight for source in sources if source.weight is not None]
    if not weights:
        return None
    for source, count in zip(sources, counts, strict=True):
        if not count:
            raise ConfigError(
                f"{source.path}: has the weight {source.weight:g} and no example that is trained, since all are held "
                "out or left out; give it more examples, or leave it out."
            )
    return Mix(tuple(counts), tuple(weights))


def held_out(config: TrainConfig, tokenizer: Tokenizer, vocabulary: int, *, whole: bool) -> tuple[Samples, SideReport]:
    """The held-out examples of the file, or all with `whole`, as tokens, and what became of all; raises as `encode`."""
    examples = _all_examples(config)[0] if whole else split_examples(config)[1]
    side = _encode_side(examples, config, tokenizer, vocabulary)
    if not side.samples:
        raise ConfigError(
            f"{source_name(config)}: none of its {len(examples)} examples has a token that is trained: give a longer "
            "sequence length or other examples."
        )
    return side.samples, side.report


def _encode_side(examples: Subset, config: TrainConfig, tokenizer: Tokenizer, vocabulary: int) -> _Side:
    first, hashes, files = None, array("Q"), array("I")
    several = config.data.path is not None and len(sources_of(config.data.path)) > 1

    def check(example: Example, sample: Sample) -> None:
        nonlocal first
        check_vocabulary([example], [sample], tokenizer, vocabulary)
        first = first or example
        hashes.append(digest(example.text))
        if several:
            files.append(example.file)

    samples, report = encode_examples(
        examples,
        tokenizer,
        config.training.sequence_length,
        train_on_prompt=config.data.train_on_prompt,
        last_answer=config.data.answers == "last",
        too_long=config.data.too_long,
        folder=config.checkpointing.directory,
        check=check,
    )
    return _Side(examples, samples, report, np.asarray(hashes), np.asarray(files), first)


def _hold_out_others(training: _Side, held_out: _Side, fraction: float, directory: str) -> None:
    """Hold out samples of the training side, chosen alike, where all that were to be held out are left out."""
    kept, moved = split_indices(training.hashes, fraction)
    if not len(kept) or not len(moved):
        return
    chosen = set(training.hashes[moved].tolist())
    held_out.first = next(example for example in training.examples if digest(example.text) in chosen)
    whole = training.samples
    training.files = training.files[kept] if len(training.files) else training.files
    training.samples, held_out.samples = (Samples((whole[i] for i in side), directory) for side in (kept, moved))
    training.report.examples -= len(moved)
    held_out.report.examples += len(moved)
    for side in (training, held_out):
        side.report.count_samples(side.samples)
