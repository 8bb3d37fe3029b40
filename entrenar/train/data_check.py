"""What is in a data file, as a model would be trained on it: counts, lengths, faults, and samples with their marks."""

from __future__ import annotations

import html
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby

import numpy as np

from entrenar.data import (
    DataReport,
    Example,
    Sample,
    SideReport,
    digest,
    encode_examples,
    names_of,
)
from entrenar.data.encoding import Encoded, FileReport, encoded, file_reports
from entrenar.data.split import among
from entrenar.errors import ConfigError, FormatError
from entrenar.io.tokenizer import Tokenizer
from entrenar.train.checked_records import CheckedExamples, CheckedPreferences, CheckedRecords
from entrenar.train.config import Data
from entrenar.train.preference_data import encode_answer
from entrenar.train.vocabulary import check_vocabulary

BINS = 12  # of the histogram
EMPTY = re.compile(
    r": (output|completion|content|value|chosen|rejected) is ('(\s|\\[nrt])*'|None|\[\]), expected"
    r"|assistant has no (content|value)"
)


@dataclass
class Overlap:
    """Of the records to evaluate on, how many have a text that is trained on too, and where the first stands."""

    records: int = 0
    first: str = ""


@dataclass
class DataCheck:
    """What was found: `lengths` counts whole samples by (from, to) tokens, `bad` is the sentence of the first record
    that is refused and `bad_records` their number, `duplicates` counts texts that stood before, `answers` those of
    preferences by what they are, `shown` are samples (where, runs of their text) and `texts` (n,) uint64 the digests
    of the records that are read."""

    source: str
    records: int
    sequence_length: int
    report: SideReport
    bad_records: int = 0
    bad: str | None = None
    empty_answers: int = 0
    duplicates: int = 0
    first_duplicate: str = ""
    answers: dict[str, int] = field(default_factory=dict)
    lengths: list[tuple[int, int, int]] = field(default_factory=list)
    longest: int = 0
    files: list[FileReport] = field(default_factory=list)
    shown: list[tuple[str, list[tuple[bool, str]]]] = field(default_factory=list)
    texts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64), repr=False)
    overlap: Overlap | None = None

    @property
    def trained_percent(self) -> float:
        """Of the tokens, those that are trained."""
        return 100 * self.report.trained_tokens / self.report.tokens if self.report.tokens else 0.0

    def refuse(self, sentence: str) -> None:
        """Count one more record that is refused, and whether because its answer holds nothing."""
        self.bad_records += 1
        self.bad = self.bad or sentence
        self.empty_answers += bool(EMPTY.search(sentence))

    def remarks(self) -> list[str]:
        """The sentences that a run would say of the file."""
        return list(
            DataReport(self.source, self.sequence_length, self.report, SideReport(), files=self.files).remarks()
        )

    def table(self) -> dict[str, object]:
        """For JSON."""
        found = asdict(replace(self, texts=self.texts[:0]))
        for name in ("report", "shown", "lengths", "texts"):
            del found[name]
        read = {key: value for key, value in asdict(self.report).items() if key not in ("examples", "unused")}
        lengths = [{"from": low, "to": high, "samples": count} for low, high, count in self.lengths]
        samples = [
            {"where": where, "runs": [{"trained": trained, "text": text} for trained, text in runs]}
            for where, runs in self.shown
        ]
        derived = {"trained_percent": self.trained_percent, "lengths": lengths, "remarks": self.remarks()}
        return found | read | derived | {"shown": samples}


def check_data(
    data: Data,
    tokenizer: Tokenizer,
    vocabulary: int,
    sequence_length: int,
    *,
    show: int = 3,
    preference: str = "none",
    against: DataCheck | None = None,
) -> DataCheck:
    """Read every record of `data.path`, go on after one that is refused, and show the first `show` samples.

    With `preference`, a method, records are preferences, and all answers of the first `show` records are shown. With
    `against`, what was found of the training data, the records that stand there too are counted in `overlap`. Raises
    FormatError or ConfigError where the file as a whole cannot be read.
    """
    plain = preference == "none"
    records: CheckedRecords = CheckedExamples(data) if plain else CheckedPreferences(data, preference)

    def encode(example: Example) -> Encoded:
        if not plain:
            return "", encode_answer(example, tokenizer, vocabulary, sequence_length)
        reason, sample = encoded(example, tokenizer, data.train_on_prompt, data.answers == "last")
        if sample is not None:
            check_vocabulary([example], [sample], tokenizer, vocabulary)
        return reason, sample

    found = DataCheck(names_of(records.sources), len(records), sequence_length, SideReport())
    reading, samples = _Reading(records, found, encode), [0] * len(records.sources)

    def keep(example: Example, sample: Sample) -> None:
        samples[example.file] += 1
        if len(found.shown) < show if plain else len(reading.texts) <= show:
            where = f"{example.where}, {reading.name}" if reading.name else example.where
            found.shown.append((where, marked_text(sample, tokenizer)))

    found.report = encode_examples(
        reading.examples(),
        tokenizer,
        sequence_length,
        train_on_prompt=data.train_on_prompt,
        too_long=data.too_long,
        check=keep,
        whole=lambda _: reading.last,
    )[1]
    found.files, found.texts = file_reports(records.sources, samples), np.asarray(reading.texts)
    found.lengths, found.longest = histogram(reading.lengths), max(reading.lengths, default=0)
    found.duplicates, found.first_duplicate = reading.counted(repeated(found.texts))
    if against is not None:
        found.overlap = Overlap(*reading.counted(among(found.texts, against.texts)))
    return found


class _Reading:
    """Every record once: `last` is what the example that is read became, `name` what it is called, `texts` are the
    digests of the records that are read, `lengths` the tokens of their examples; `found` hears of the others."""

    def __init__(self, records: CheckedRecords, found: DataCheck, encode: Callable[[Example], Encoded]) -> None:
        self.records, self.found, self.encode = records, found, encode
        self.texts, self.lengths, self.refused = array("Q"), array("i"), array("q")
        self.last: Encoded = "", None
        self.name = ""

    def examples(self) -> Iterator[Example]:
        """The examples of the records of which none is refused."""
        count = len(self.records)
        reader = self.records.read(range(count))
        for index in range(count):
            try:
                record = next(reader)
                encodings = [self.encode(example) for _, example in record.examples]
            except (ConfigError, FormatError) as error:
                self.found.refuse(str(error))
                self.refused.append(index)
                reader = self.records.read(range(index + 1, count))  # an error ends the one before
                continue
            self.texts.append(digest(record.text))
            for (self.name, example), self.last in zip(record.examples, encodings, strict=True):
                if self.last[1] is not None:
                    self.lengths.append(len(self.last[1]))
                if self.name:
                    self.found.answers[self.name] = self.found.answers.get(self.name, 0) + 1
                yield example

    def counted(self, marks: np.ndarray) -> tuple[int, str]:
        """How many of the records that are read are marked, and where the first stands."""
        if not marks.any():
            return 0, ""
        number = int(marks.argmax())
        for index in self.refused:  # they ascend
            if index > number:
                break
            number += 1
        return int(marks.sum()), next(self.records.read([number])).where


def repeated(hashes: np.ndarray) -> np.ndarray:
    """Which of them stood before, (n,) bool."""
    order = np.argsort(hashes, kind="stable")
    marks = np.zeros(len(hashes), bool)
    ordered = hashes[order]
    marks[order[1:]] = ordered[1:] == ordered[:-1]
    return marks


def histogram(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """(from, to, count) of at most BINS ranges of whole tokens, both ends included."""
    if not len(lengths):
        return []
    low, high = min(lengths), max(lengths)
    width = -(-(high - low + 1) // BINS)
    places = np.bincount((np.array(lengths) - low) // width)
    return [(low + i * width, low + (i + 1) * width - 1, int(count)) for i, count in enumerate(places)]


def marked_text(sample: Sample, tokenizer: Tokenizer) -> list[tuple[bool, str]]:
    """The decoded text of a sample's runs of tokens that are trained, and that are not."""
    marks = sample.trained.tolist()
    runs, start = [], 0
    for trained, group in groupby(marks):
        stop = start + len(list(group))
        runs.append((trained, tokenizer.decode(sample.tokens[start:stop].tolist(), skip_special=False)))
        start = stop
    return runs


STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;"
    "background:#fff}table{border-collapse:collapse}td{padding:.1rem .8rem .1rem 0;vertical-align:top}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f4f5f7;padding:.8rem;border-radius:6px}"
    "mark{background:#b7ebc6;color:inherit}.bar{background:#4a7fc1;height:.8rem;display:block}"
    "@media(prefers-color-scheme:dark){body{background:#14171a;color:#e4e7ea}pre{background:#20252a}"
    "mark{background:#1f5b38}}"
)


def page(sides: Sequence[tuple[DataCheck, dict[str, str]]]) -> str:
    """One HTML file that needs no other: of each side its table, histogram, remarks and samples."""
    title = html.escape(sides[0][0].source)
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(_part(found, rows) for found, rows in sides)}</body></html>\n"
    )


def _part(found: DataCheck, rows: dict[str, str]) -> str:
    most = max((count for *_, count in found.lengths), default=1)
    bars = "".join(
        f"<tr><td>{low:,}-{high:,}</td><td>{count:,}</td>"
        f'<td style="width:20rem"><span class="bar" style="width:{100 * count / most:.1f}%"></span></td></tr>'
        for low, high, count in found.lengths
    )
    table = "".join(f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>" for key, value in rows.items())
    remarks = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in found.remarks())
    samples = "".join(
        f"<h3>{html.escape(where)}</h3><pre>"
        + "".join(f"<mark>{html.escape(text)}</mark>" if trained else html.escape(text) for trained, text in runs)
        + "</pre>"
        for where, runs in found.shown
    )
    return (
        f"<h1>{html.escape(found.source)}</h1><table>{table}</table>{remarks}<h2>Lengths in tokens</h2>"
        f"<table>{bars}</table><h2>Samples</h2><p>What is <mark>marked</mark> is trained.</p>{samples}"
    )
