"""Several files that are read as one: their paths and weights, and the examples of all of them in order."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from entrenar.config import shown
from entrenar.data.formats import Example, ExampleFile, Examples
from entrenar.data.record_files import stored_bytes
from entrenar.errors import ConfigError

Record = TypeVar("Record")
Read = TypeVar("Read", covariant=True)


@dataclass(frozen=True)
class Source:
    """A file or folder of examples, and its part of what is drawn, relative to the others'; None where it has none."""

    path: str
    weight: float | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the file, or of the texts of the folder; 0 where it cannot be read, which its reader says."""
        return stored_bytes(self.path)


def sources_of(given: str | Sequence[str], name: str = "data.path") -> list[Source]:
    """The files of PATH or PATH:WEIGHT texts of option `name`; a path that exists is that path, whatever colons it has.

    Raises ConfigError for a weight that is no number above 0, that only some of the files have, or that a single file
    has, and for a file that stands there twice.
    """
    found = [_source(text, name) for text in ([given] if isinstance(given, str) else given)]
    weighted = [source for source in found if source.weight is not None]
    if weighted and len(found) == 1:
        raise ConfigError(
            f"{name} gives {found[0].path} the weight {weighted[0].weight:g}, which has no effect without another "
            "file; leave it out."
        )
    if weighted and len(weighted) < len(found):
        without = next(source.path for source in found if source.weight is None)
        raise ConfigError(f"{name} gives {without} no weight and others one; give each file a weight, or none.")
    for at, source in enumerate(found):
        if source.path in [other.path for other in found[:at]]:
            raise ConfigError(f"{name} names {source.path} twice; name it once (a weight repeats it).")
    return found


def _source(text: str, name: str) -> Source:
    path, colon, weight = text.rpartition(":")
    if not colon or _exists(text):
        return Source(text)
    try:
        value = float(weight)
    except ValueError:
        if not _exists(path):
            return Source(text)
        value = math.nan
    if not path or not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} is {shown(text)}, whose weight {shown(weight)} is not a number above 0.")
    return Source(path, value)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # a name that is too long, or holds NUL
        return False


def eval_sources(given: str | Sequence[str]) -> list[Source]:
    """The files to evaluate on: every token of them counts alike, so ConfigError where they have weights."""
    return unweighted(given, "an evaluation", "data.eval_path")


def names_of(sources: Iterable[Source]) -> str:
    """The paths, as a sentence or a report names them together."""
    return ", ".join(source.path for source in sources)


def unweighted(given: str | Sequence[str], user: str, name: str = "data.path") -> list[Source]:
    """The files for what draws all alike; ConfigError where they have weights."""
    found = sources_of(given, name)
    if found[0].weight is not None:
        raise ConfigError(
            f"{name} gives {found[0].path} the weight {found[0].weight:g}, which {user} does not use; leave the "
            "weights out."
        )
    return found


class Readable(Protocol[Read]):
    """What has so many records, and reads those that are asked for."""

    def __len__(self) -> int: ...

    def read(self, indices: Iterable[int]) -> Iterator[Read]:
        """The records of these indices, in their order."""


class Joined(Generic[Record]):
    """The records of several files, one file after the other, of each the first `most` (0 is all).

    `begins` (files + 1) are where each begins.
    """

    def __init__(self, files: Sequence[Readable[Record]], most: int = 0) -> None:
        self._files = files
        self.begins = [0, *accumulate(min(len(file), most or len(file)) for file in files)]

    def __len__(self) -> int:
        return self.begins[-1]

    def read(self, indices: Iterable[int]) -> Iterator[tuple[int, Record]]:
        """The number of its file and the record, of these indices, in their order."""
        for number, group in groupby(indices, key=lambda index: bisect_right(self.begins, index) - 1):
            begin = self.begins[number]
            for record in self._files[number].read(index - begin for index in group):
                yield number, record


class ExampleFiles(Examples):
    """The examples of several files, one file after the other, of each the first `most` (0 is all).

    `bounds` (files + 1,) are where each begins; `format` is that of all records. An example says its `file`.
    Raises as `ExampleFile`.
    """

    def __init__(self, sources: Sequence[Source], most: int = 0, format: str = "auto") -> None:
        self.sources = sources
        self._joined = Joined([ExampleFile(source.path, format) for source in sources], most)
        self.bounds = np.array(self._joined.begins)

    def __len__(self) -> int:
        return len(self._joined)

    def read(self, indices: Iterable[int]) -> Iterator[Example]:
        """The examples of these indices, in their order."""
        for number, example in self._joined.read(indices):
            yield replace(example, file=number) if number else example
