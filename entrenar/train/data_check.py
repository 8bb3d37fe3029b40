"""What is in a data file, as a model would be trained on it: counts, lengths, faults, and samples with their marks."""

from __future__ import annotations

import html
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby

import numpy as np

from entrenar.data import (
    DataReport,
    Example,
    ExampleFiles,
    Sample,
    SideReport,
    digest,
    encode_examples,
    names_of,
    sources_of,
)
from entrenar.data.encoding import Encoded, FileReport, encoded, file_reports
from entrenar.data.split import among
from entrenar.errors import ConfigError, FormatError
from entrenar.io.tokenizer import Tokenizer
from entrenar.train.config import Data
from entrenar.train.vocabulary import check_vocabulary

BINS = 12  # of the histogram
EMPTY = re.compile(
    r": (output|completion|content|value) is ('(\s|\\[nrt])*'|None|\[\]), expected|assistant has no (content|value)"
)


@dataclass
class Overlap:
    """Of the records to evaluate on, how many have a text that is trained on too, and where the first stands."""

    records: int = 0
    first: str = ""


@dataclass
class DataCheck:
    """What was found: `lengths` counts whole samples by (from, to) tokens, `bad` is the sentence of the first record
    that is refused and `bad_records` their number, `duplicates` counts texts that stood before, `shown` are samples and
    `texts` (n,) uint64 the digests of the records that are read."""

    source: str
    records: int
    sequence_length: int
    report: SideReport
    bad_records: int = 0
    bad: str | None = None
    empty_answers: int = 0
    duplicates: int = 0
    first_duplicate: str = ""
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
        """For JSON: all but the samples that are shown."""
        found = asdict(replace(self, texts=self.texts[:0]))
        for name in ("report", "shown", "lengths", "texts"):
            del found[name]
        read = {key: value for key, value in asdict(self.report).items() if key not in ("examples", "unused")}
        lengths = [{"from": low, "to": high, "samples": count} for low, high, count in self.lengths]
        return found | read | {"trained_percent": self.trained_percent, "lengths": lengths, "remarks": self.remarks()}


def check_data(
    data: Data,
    tokenizer: Tokenizer,
    vocabulary: int,
    sequence_length: int,
    *,
    show: int = 3,
    against: DataCheck | None = None,
) -> DataCheck:
    """Read every record of `data.path`, go on after one that is refused, and show the first `show` samples.

    With `against`, what was found of the training data, the records that stand there too are counted in `overlap`.
    Raises FormatError or ConfigError where the file as a whole cannot be read.
    """
    assert data.path is not None
    sources = sources_of(data.path)
    examples = ExampleFiles(sources, data.max_examples, data.format)
    count, prompts = len(examples), data.train_on_prompt
    found = DataCheck(names_of(sources), count, sequence_length, SideReport())
    samples = [0] * len(sources)
    texts, refused, lengths = array("Q"), array("q"), array("i")
    last: Encoded = "", None  # of the example that is read

    def keep(example: Example, sample: Sample) -> None:
        samples[example.file] += 1
        if len(found.shown) < show:
            found.shown.append((example.where, marked_text(sample, tokenizer)))

    def whole(_: Example) -> Encoded:
        return last

    def read() -> Iterator[Example]:
        nonlocal last
        reader = examples.read(range(count))
        for index in range(count):
            try:
                example = next(reader)
                last = encoded(example, tokenizer, prompts, data.answers == "last")
                if last[1] is not None:
                    check_vocabulary([example], [last[1]], tokenizer, vocabulary)
                    lengths.append(len(last[1]))
            except (ConfigError, FormatError) as error:
                found.refuse(str(error))
                refused.append(index)
                reader = examples.read(range(index + 1, count))  # an error ends the one before
                continue
            texts.append(digest(example.text))
            yield example

    found.report = encode_examples(
        read(), tokenizer, sequence_length, train_on_prompt=prompts, too_long=data.too_long, check=keep, whole=whole
    )[1]
    found.files, found.texts = file_reports(sources, samples), np.asarray(texts)
    found.lengths, found.longest = histogram(lengths), max(lengths, default=0)
    again = repeated(found.texts)
    found.duplicates, found.first_duplicate = _counted(again, examples, refused)
    if against is not None:
        found.overlap = Overlap(*_counted(among(found.texts, against.texts), examples, refused))
    return found


def repeated(hashes: np.ndarray) -> np.ndarray:
    """Which of them stood before, (n,) bool."""
    order = np.argsort(hashes, kind="stable")
    marks = np.zeros(len(hashes), bool)
    ordered = hashes[order]
    marks[order[1:]] = ordered[1:] == ordered[:-1]
    return marks


def _counted(marks: np.ndarray, examples: ExampleFiles, refused: Sequence[int]) -> tuple[int, str]:
    """How many are marked of the examples without those of the indices `refused`, which ascend, and where the first
    stands."""
    if not marks.any():
        return 0, ""
    number = int(marks.argmax())
    for index in refused:
        if index > number:
            break
        number += 1
    return int(marks.sum()), examples[number].where


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
