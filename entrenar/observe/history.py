"""A history of benchmarks, an object a line, and what became slower in it.

A line is one case of one run of `make bench`: commit, date, cpu, tier, threads, packages, quick, cpu_time, entry, case,
unit, lower (whether less is better) and values, one for each repetition. Where the unit is x, a value is a ratio of two
sides that were timed within the same repetition, so that the machine's own changes of speed are in both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from entrenar.errors import FormatError
from entrenar.observe.changes import FEWEST, Change, changes, level_of, scores
from entrenar.observe.records import json_lines

TOGETHER = "all its cases together"


@dataclass(frozen=True)
class Sample:
    """One run of a case; `values` are larger where it is slower or takes more."""

    commit: str
    date: datetime
    values: np.ndarray


@dataclass
class Series:
    """All runs of a case on one machine with the same peers, by commit, the commits by their first run.

    `relative` says that values are logarithms, so that their shift is a share.
    """

    entry: str
    case: str
    unit: str
    machine: str
    lower: bool = True
    relative: bool = True
    samples: list[Sample] = field(default_factory=list)

    def places(self) -> list[int]:
        """The runs that are the first of a commit, but for the first of all."""
        commits = [sample.commit for sample in self.samples]
        return [place for place in range(1, len(commits)) if commits[place] != commits[place - 1]]


def read_history(path: Path) -> list[Series]:
    """The series of a history; FormatError, with the line, where it is none."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in json_lines(path, _row, "no result of a benchmark", "remove it", "make bench-history writes one"):
        found.setdefault(row.pop("key"), []).append(row)
    if not found:
        raise FormatError(f"{path}: holds no result; make bench-history writes some.")
    return [_series(rows) for rows in found.values()]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a line, checked; `key` tells series apart."""
    values = [float(value) for value in row["values"]]
    if not values or not all(map(math.isfinite, values)):
        raise ValueError("values that are no finite numbers")
    date = datetime.fromisoformat(row["date"])
    if date.tzinfo is None:
        raise ValueError("a date without its zone")
    if not isinstance(row["lower"], bool):
        raise TypeError("lower is neither true nor false")
    packages = dict(row.get("packages", {}))
    packages.pop("entrenar", None)
    names = {name: str(row[name]) for name in ("commit", "entry", "case", "unit", "cpu", "tier", "threads")}
    kind = [packages, row.get("quick", False), row.get("cpu_time", False), row["lower"]]
    key = json.dumps([{**names, "commit": ""}, *kind], sort_keys=True)
    return {**names, "date": date, "lower": row["lower"], "values": values, "key": key}


def _series(rows: list[dict[str, Any]]) -> Series:
    beginnings: dict[str, datetime] = {}
    for row in rows:
        beginnings[row["commit"]] = min(row["date"], beginnings.get(row["commit"], row["date"]))
    rows.sort(key=lambda row: (beginnings[row["commit"]], row["commit"], row["date"]))
    last = rows[-1]
    relative = all(value > 0 for row in rows for value in row["values"])
    sign = 1.0 if last["lower"] else -1.0
    machine = f"{last['cpu']}, {last['tier']}, {last['threads']} threads"
    made = Series(last["entry"], last["case"], last["unit"], machine, last["lower"], relative)
    for row in rows:
        values = np.array(row["values"])
        made.samples.append(Sample(row["commit"], row["date"], sign * (np.log(values) if relative else values)))
    return made


def find(series: Sequence[Series]) -> dict[str, Any]:
    """Every change of every series, and of the cases of an entry together, as values that JSON can hold."""
    groups = _groups(series)
    level = level_of(len(series) + len(groups))
    found, judged = [], 0
    for each in series:
        judged += bool(_possible(each))
        for change in changes([sample.values for sample in each.samples], each.places(), level):
            found.append(_table(each, change))
    for group in groups:
        found += _together(group, level)
    found.sort(key=lambda row: (not row["slower"], row["p"]))
    return {
        "series": len(series),
        "judged": judged,
        "runs": max(len(each.samples) for each in series),
        "level": level,
        "changes": found,
        "slower": [row for row in found if row["slower"]],
    }


def _possible(series: Series) -> list[int]:
    return [place for place in series.places() if FEWEST <= place <= len(series.samples) - FEWEST]


def _groups(series: Sequence[Series]) -> list[list[Series]]:
    """The series of an entry on a machine that have the same runs, two or more."""
    found: dict[tuple[Any, ...], list[Series]] = {}
    for each in series:
        runs = tuple((sample.commit, sample.date) for sample in each.samples)
        found.setdefault((each.entry, each.machine, each.relative, runs), []).append(each)
    return [group for group in found.values() if len(group) > 1]


def _together(group: Sequence[Series], level: float) -> list[dict[str, Any]]:
    """Changes that the cases of an entry share: their scores are averaged by run, and their runs permuted as one."""
    first = group[0]
    score = np.mean([scores([sample.values for sample in each.samples]) for each in group], axis=0)
    medians = np.array([[np.median(sample.values) for sample in each.samples] for each in group])
    values = np.mean(medians - np.median(medians, axis=1, keepdims=True), axis=0)
    joint = Series(first.entry, TOGETHER, first.unit if len({e.unit for e in group}) == 1 else "", first.machine)
    joint.relative = first.relative
    joint.samples = [
        Sample(sample.commit, sample.date, np.array([value]))
        for sample, value in zip(first.samples, values, strict=True)
    ]
    runs = [sample.values for sample in joint.samples]
    return [_table(joint, change) for change in changes(runs, joint.places(), level, score=score)]


def _table(series: Series, change: Change) -> dict[str, Any]:
    """A change for a person and for JSON: sizes are shares of the time or size before, where `relative`."""

    def size(value: float) -> float:
        return math.expm1(value) if series.relative else value

    samples = series.samples
    return {
        "entry": series.entry,
        "case": series.case,
        "machine": series.machine,
        "slower": change.size > 0,
        "commit": samples[change.first].commit,
        "date": samples[change.first].date.isoformat(),
        "last_before": samples[change.first - 1].commit,
        "places": [samples[place].commit for place in change.places],
        "size": size(change.size),
        "interval": [size(value) for value in change.interval],
        "relative": series.relative,
        "unit": series.unit,
        "p": change.p,
        "confidence": 1 - change.p,
        "runs": [change.first, len(samples) - change.first],
    }
