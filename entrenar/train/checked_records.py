"""The records of the files that are checked, examples or preferences, read and encoded as a run does with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from entrenar.data import Example, ExampleFiles, Source, sources_of
from entrenar.data.preferences import Preference, PreferenceRecords
from entrenar.data.sources import Joined, unweighted
from entrenar.train.config import Data, Preferences, TrainConfig, Training


@dataclass(frozen=True)
class CheckedRecord:
    """A record's examples, each with what it is called beside the others (one of many needs no name), and the text
    that tells records apart."""

    text: str
    examples: tuple[tuple[str, Example], ...]

    @property
    def where(self) -> str:
        """The file and the place in it."""
        return self.examples[0][1].where


class CheckedRecords(Protocol):
    """The records of the files `sources`, one file after the other."""

    sources: Sequence[Source]

    def __len__(self) -> int: ...

    def read(self, indices: Iterable[int]) -> Iterator[CheckedRecord]:
        """The records of these indices, in their order."""


class CheckedExamples:
    """The records of `data.path`, each one example; raises as `ExampleFiles`."""

    def __init__(self, data: Data) -> None:
        assert data.path is not None
        self.sources: Sequence[Source] = sources_of(data.path)
        self._examples = ExampleFiles(self.sources, data.max_examples, data.format)

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, indices: Iterable[int]) -> Iterator[CheckedRecord]:
        """The records of these indices, in their order."""
        for example in self._examples.read(indices):
            yield CheckedRecord(example.text, (("", example),))


class CheckedPreferences:
    """The records of `data.path` as preferences for `method`: a chosen and a rejected answer, or answers with labels.

    Raises ConfigError for what a run with `method` refuses of `data`, else as `PreferenceRecords`.
    """

    def __init__(self, data: Data, method: str) -> None:
        assert data.path is not None
        TrainConfig(Training(batch_size=2), data=data, preference=Preferences(method))  # refuses what has no effect
        self.sources: Sequence[Source] = unweighted(data.path, method)
        self._labelled = method == "kto"
        files = [PreferenceRecords(source.path, labelled=self._labelled) for source in self.sources]
        self._records = Joined(files, data.max_examples)

    def __len__(self) -> int:
        return len(self._records)

    def read(self, indices: Iterable[int]) -> Iterator[CheckedRecord]:
        """The records of these indices, in their order."""
        for number, record in self._records.read(indices):
            named = [
                (name, replace(answer, file=number))
                for preference in record
                for name, answer in zip(self._names(preference), preference.answers, strict=True)
            ]
            yield CheckedRecord(record[0].text, tuple(named))

    def _names(self, preference: Preference) -> tuple[str, ...]:
        """What the answers of a preference are called."""
        return (f"label {str(preference.label).lower()}",) if self._labelled else ("chosen", "rejected")
