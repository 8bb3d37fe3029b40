"""A run's preferences: read and split, encoded, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import numpy as np

from entrenar.data import (
    DataReport,
    Example,
    Sample,
    SideReport,
    encode_example,
    encode_examples,
    eval_sources,
    names_of,
    split_files,
)
from entrenar.data.preferences import Preference, PreferenceFile
from entrenar.data.sources import unweighted
from entrenar.data.split import among
from entrenar.errors import ConfigError
from entrenar.io.tokenizer import Tokenizer
from entrenar.models.api import LLaMAModel
from entrenar.train.config import Preferences, TrainConfig
from entrenar.train.dataset import source_name
from entrenar.train.preference import (
    PreferenceBatch,
    PreferenceBatches,
    PreferenceData,
    PreferenceLoader,
    check_sample,
)
from entrenar.train.vocabulary import check_vocabulary

MOST_WANTED = 4 / 3  # times the unwanted, by weight (Ethayarajh et al., 2024)


@dataclass
class PreferenceSides:
    """Preferences to train on and held-out ones, an example to show, and the report."""

    training: PreferenceData
    held_out: PreferenceData
    shown: Example
    report: DataReport

    def remarks(self, settings: Preferences) -> list[str]:
        """How much KTO's wanted answers weigh against the unwanted, where that is not as advised; TRL warns of it."""
        if settings.method != "kto":
            return []
        labels = self.training.labels
        wanted, unwanted = int(labels.sum()), int((~labels).sum())
        if not wanted or not unwanted:
            kind, other = ("wanted", "unwanted") if wanted else ("unwanted", "wanted")
            return [f"All {len(labels):,} answers that are trained on are {kind}: kto learns from {other} ones too."]
        ratio = wanted * settings.desirable_weight / (unwanted * settings.undesirable_weight)
        if wanted == unwanted or 1 <= ratio <= MOST_WANTED:
            return []
        key, value = ("desirable", settings.desirable_weight / ratio)
        if ratio > 1:
            key, value = ("undesirable", settings.undesirable_weight * ratio)
        return [
            f"{wanted:,} answers are wanted and {unwanted:,} are not: with their weights the ratio is {ratio:.2f}, and "
            f"the authors of kto advise 1 to 4/3; preference.{key}_weight = {value:.3g} makes it 1."
        ]

    def batches(
        self, config: TrainConfig, model: LLaMAModel, pad_id: int
    ) -> tuple[PreferenceLoader, Sequence[PreferenceBatch]]:
        """The loader and the held-out batches, with `model` as it is as the reference."""
        t = config.training
        if config.preference.method != "orpo":
            for side in (self.training, self.held_out):
                side.compute_reference(model, t.sequence_length, pad_id)
        loader = PreferenceLoader(self.training, t.batch_size, t.sequence_length, seed=t.seed, pad_id=pad_id)
        return loader, PreferenceBatches(self.held_out, t.batch_size, t.sequence_length, pad_id)


def encode(config: TrainConfig, tokenizer: Tokenizer, vocabulary: int) -> PreferenceSides:
    """The run's preferences as tokens of a model that has `vocabulary` of them; raises as `dataset.encode`."""
    data, method = config.data, config.preference.method
    assert data.path is not None  # held by the configuration
    options: dict[str, Any] = {"labelled": method == "kto"}
    least = 2 if method == "kto" else 1  # an answer is compared with those to other prompts
    sources = unweighted(data.path, method)
    files = [PreferenceFile(source.path, **options, most=data.max_examples) for source in sources]
    others = [] if data.eval_path is None else eval_sources(data.eval_path)
    own = [PreferenceFile(source.path, **options, most=data.max_examples) for source in others]
    hashes, bounds = np.concatenate([file.hashes for file in files]), np.array([0, *accumulate(map(len, files))])
    training, held_out = split_files(hashes, bounds, 0 if own else data.held_out_fraction, least)
    if not len(training) or (not own and data.held_out_fraction and not len(held_out)):
        raise ConfigError(
            f"{source_name(config)}: has {len(hashes)} preferences, which cannot be both trained on and held out; give "
            "more, or data.held_out_fraction = 0."
        )

    def chosen(side: np.ndarray) -> Iterator[Preference]:
        for file, first, end in zip(files, bounds[:-1], bounds[1:], strict=True):
            yield from file.read(side[(first <= side) & (side < end)] - first)

    sides = [_encoded(chosen(training), config, tokenizer, vocabulary)]
    sides.append(_encoded(chain(*own) if own else chosen(held_out), config, tokenizer, vocabulary))
    (first, trained, shown), (second, kept, held_out_shown) = sides
    for side, source, use in ((first, source_name(config), "train"), (second, names_of(others), "evaluate")):
        if len(side.samples) == 1 and least > 1:
            raise ConfigError(
                f"{source or source_name(config)}: has one answer to {use} on, and {method} compares an answer with "
                "those to other prompts, so that its loss would say nothing; give more."
            )
    report = DataReport(source_name(config), config.training.sequence_length, trained, kept)
    if own:
        report.evaluated = names_of(others)
        report.shared = second.group * sum(int(among(file.hashes, hashes).sum()) for file in own)
    shown = held_out_shown or shown
    assert shown is not None  # held above
    return PreferenceSides(first, second, shown, report)


def _encoded(
    preferences: Iterable[Preference], config: TrainConfig, tokenizer: Tokenizer, vocabulary: int
) -> tuple[PreferenceData, SideReport, Example | None]:
    """The answers as tokens, what they are, and the first of them."""
    labelled, length = config.preference.method == "kto", config.training.sequence_length
    labels, first = bytearray(), None
    folder = config.checkpointing.directory

    def answers() -> Iterator[Example]:
        nonlocal first
        for preference in preferences:
            for answer in preference.answers:
                labels.append(preference.label)
                first = first or answer
                yield answer

    samples, report = encode_examples(
        answers(),
        tokenizer,
        length,
        folder=folder,
        whole=lambda answer: ("", encode_answer(answer, tokenizer, vocabulary, length)),
    )
    marks = np.frombuffer(labels, bool)
    return PreferenceData(samples, marks, 1 if labelled else 2, shifts=labelled, folder=folder), report, first


def encode_answer(answer: Example, tokenizer: Tokenizer, vocabulary: int, length: int) -> Sample:
    """All tokens of an answer and its prompt; ConfigError or FormatError, naming its place, where its first `length`
    train nothing, or have one that a model of `vocabulary` tokens lacks."""
    whole = encode_example(answer, tokenizer)
    row = whole.part(0, min(len(whole), length))
    check_sample(row, answer.where)
    check_vocabulary([answer], [row], tokenizer, vocabulary)
    return whole
