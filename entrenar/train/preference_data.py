"""A run's preferences: read and split, encoded, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from entrenar.data import DataReport, Example, SideReport, digest, encode_example, split_files
from entrenar.data.preferences import Preference, read_preferences
from entrenar.data.sources import unweighted
from entrenar.errors import ConfigError
from entrenar.io.tokenizer import Tokenizer
from entrenar.models.api import LLaMAModel
from entrenar.train.config import TrainConfig
from entrenar.train.dataset import source_name
from entrenar.train.preference import (
    PreferenceBatch,
    PreferenceData,
    PreferenceLoader,
    check_samples,
    held_out_batches,
)
from entrenar.train.vocabulary import check_vocabulary


@dataclass
class PreferenceSides:
    """Preferences to train on and held-out ones, an example to show, and the report."""

    training: PreferenceData
    held_out: PreferenceData
    shown: Example
    report: DataReport

    def batches(
        self, config: TrainConfig, model: LLaMAModel, pad_id: int
    ) -> tuple[PreferenceLoader, list[PreferenceBatch]]:
        """The loader and the held-out batches, with `model` as it is as the reference."""
        t = config.training
        if config.preference.method != "orpo":
            for side in (self.training, self.held_out):
                side.compute_reference(model, t.sequence_length, pad_id)
        loader = PreferenceLoader(self.training, t.batch_size, t.sequence_length, seed=t.seed, pad_id=pad_id)
        return loader, list(held_out_batches(self.held_out, t.batch_size, t.sequence_length, pad_id))


def encode(config: TrainConfig, tokenizer: Tokenizer, vocabulary: int) -> PreferenceSides:
    """The run's preferences as tokens of a model that has `vocabulary` of them; raises as `dataset.encode`."""
    data, labelled = config.data, config.preference.method == "kto"
    assert data.path is not None  # held by the configuration
    files = [
        read_preferences(source.path, labelled=labelled, most=data.max_examples)
        for source in unweighted(data.path, config.preference.method)
    ]
    found, bounds = [preference for file in files for preference in file], [0, *accumulate(map(len, files))]
    hashes = np.array([digest(preference.text) for preference in found], np.uint64)
    own = [] if data.eval_path is None else read_preferences(data.eval_path, labelled=labelled)
    if own:
        sides = np.arange(len(found)), np.arange(len(found), len(found) + len(own))
        found += own
    else:
        sides = split_files(hashes, np.array(bounds), data.held_out_fraction)
    if not len(sides[0]) or (data.held_out_fraction and not len(sides[1])):
        raise ConfigError(
            f"{source_name(config)}: has {len(found)} preferences, which cannot be both trained on and held out; give "
            "more, or data.held_out_fraction = 0."
        )
    training, held_out = ([found[i] for i in side] for side in sides)
    reports = SideReport(), SideReport()
    first, second = (
        _encoded(side, config, tokenizer, vocabulary, report)
        for side, report in zip((training, held_out), reports, strict=True)
    )
    shown = (held_out or training)[0].answers[0]
    report = DataReport(source_name(config), config.training.sequence_length, *reports)
    if data.eval_path is not None:
        report.evaluated = data.eval_path
        report.shared = int(np.isin([digest(preference.text) for preference in own], hashes).sum())
    return PreferenceSides(first, second, shown, report)


def _encoded(
    preferences: Iterable[Preference], config: TrainConfig, tokenizer: Tokenizer, vocabulary: int, report: SideReport
) -> PreferenceData:
    labelled = config.preference.method == "kto"
    pairs = [(answer, preference.label) for preference in preferences for answer in preference.answers]
    answers = [answer for answer, _ in pairs]
    samples = [encode_example(answer, tokenizer, config.training.sequence_length) for answer in answers]
    check_samples(samples, [answer.where for answer in answers])
    check_vocabulary(answers, samples, tokenizer, vocabulary)
    for answer in answers:
        report.count(answer)
    report.count_samples(samples)
    return PreferenceData(samples, [label for _, label in pairs], 1 if labelled else 2, shifts=labelled)
