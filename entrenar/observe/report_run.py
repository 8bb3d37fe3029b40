"""What a run has left in its folder, read for a report: steps, summary, anomalies, profile."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entrenar.errors import FormatError
from entrenar.observe.anomaly import read_anomalies
from entrenar.observe.records import json_lines, parsed, text_of

Column = NDArray[np.float64]
FIGURES = ("step", "loss", "learning_rate", "grad_norm", "tokens", "trained_tokens", "seconds")
NEEDED = ("step", "loss", "seconds")
MEMORY = "resident_bytes"  # of a step's resources
NO_STEP, DAMAGED, EXPECTED = "no step of a run", "the file is damaged", "expected what a run leaves in its folder"


@dataclass(frozen=True)
class Run:
    """A run by columns of one value a step, NaN where there is none; `summary` and `profile` are empty where missing.

    `columns` has FIGURES, "held_out" and MEMORY, `phases` the seconds of each phase; `watched` is whether the machine
    was. `anomalies` are tables of `Anomaly`.
    """

    columns: Mapping[str, Column]
    phases: Mapping[str, Column]
    watched: bool
    summary: Mapping[str, Any] = field(default_factory=dict)
    anomalies: list[dict[str, Any]] = field(default_factory=list)
    profile: Mapping[str, Any] = field(default_factory=dict)

    @property
    def held_out(self) -> tuple[Column, Column]:
        """Steps and held-out losses, those before and after training too."""
        steps, losses = self.columns["step"], self.columns["held_out"]
        there = np.isfinite(losses)
        found = dict(zip(steps[there].tolist(), losses[there].tolist(), strict=True))
        for where, step in (("before", 0.0), ("after", float(steps[-1]))):
            loss = number(part(self.summary, "held_out", where).get("loss"))
            if loss is not None:
                found[step] = loss
        return np.array(sorted(found)), np.array([found[step] for step in sorted(found)])

    @property
    def preference(self) -> str | None:
        """The loss over preferences, None where the run minimised that of tokens."""
        method = part(self.summary, "configuration", "preference").get("method")
        return str(method) if method not in (None, "none") else None

    @property
    def estimate(self) -> dict[str, float]:
        """Bytes by item, as estimated before the run."""
        items = {str(name): number(size) for name, size in part(self.summary, "memory", "estimate").items()}
        return {name: size for name, size in items.items() if size}

    @property
    def peak(self) -> float | None:
        """Bytes of the largest resident set: the process's own count, else the largest of those sampled."""
        sampled = self.columns[MEMORY]
        counted = number(part(self.summary, "memory").get("peak_resident_bytes"))
        if counted is not None or not np.isfinite(sampled).any():
            return counted
        return float(np.nanmax(sampled))


def number(value: Any) -> float | None:
    """A finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond float64
        return None


def part(table: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The table in a table that `names` lead to; empty where there is none."""
    found: Any = table
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


# ---------------------------------------------------------------------- files
def read_run(metrics: Path, older: Path, summary: Path, anomalies: Path, profile: Path) -> Run:
    """The run of these files, of which all but `metrics` (JSON lines) may be missing; `older` is the same as CSV.

    FormatError, naming file and line, where there is no run, or a file is damaged.
    """
    if not metrics.exists() and older.exists():
        lines = csv.DictReader(text_of(older, EXPECTED).splitlines())
        rows = list(parsed(older, lines, _csv_row, NO_STEP, DAMAGED))
    else:
        rows = list(json_lines(metrics, _row, NO_STEP, DAMAGED, EXPECTED))
    if not rows:
        raise FormatError(f"{metrics}: holds no step; train at least one.")
    names = list(dict.fromkeys(name for row in rows for name in row["phases"]))
    columns = {name: _column(rows, name) for name in (*FIGURES, "held_out", MEMORY)}
    return Run(
        columns,
        {name: np.array([row["phases"].get(name, 0.0) for row in rows]) for name in names},
        any(row["watched"] for row in rows),
        _table(summary),
        [found.table() for found in read_anomalies(anomalies)],
        _table(profile),
    )


def _column(rows: Iterable[Mapping[str, Any]], name: str) -> Column:
    return np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)


def _table(path: Path) -> Mapping[str, Any]:
    """The object of a JSON file; empty where there is no file."""
    if not path.exists():
        return {}
    try:
        found = json.loads(text_of(path, EXPECTED))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is no JSON ({error}); it is damaged: remove it, or train anew.") from error
    if not isinstance(found, dict):
        raise FormatError(f"{path}: holds no object; it is damaged: remove it, or train anew.")
    return found


def _row(row: Any) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    held_out, resources = row.get("held_out"), row.get("resources", {})
    found = {name: float(row[name]) for name in FIGURES if name in NEEDED or name in row}
    return found | {
        "held_out": math.nan if held_out is None else float(held_out["loss"]),
        MEMORY: float(resources.get(MEMORY, math.nan)),
        "phases": {str(name): _seconds(value) for name, value in row.get("phases", {}).items()},
        "watched": bool(resources),
    }


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{value} seconds")
    return seconds


def _csv_row(row: Mapping[str, str]) -> dict[str, Any]:
    """A line of metrics.csv, which older runs have alone."""
    found: dict[str, Any] = {name: float(row[name]) for name in FIGURES}
    return found | {"held_out": float(row["held_out_loss"] or math.nan), "phases": {}, "watched": False}


# ---------------------------------------------------------------------- figures
def facts(run: Run) -> dict[str, Any]:
    """What a report says, as values that JSON can hold: no step by step figures."""
    seconds, tokens = float(np.nansum(run.columns["seconds"])), float(np.nansum(run.columns["tokens"]))
    steps, losses = run.held_out
    summary = run.summary
    return {
        "run": summary.get("run"),
        "steps": len(run.columns["step"]),
        "loss": {"first": number(float(run.columns["loss"][0])), "last": number(float(run.columns["loss"][-1]))},
        "held_out": [{"step": int(step), "loss": loss} for step, loss in zip(steps, losses.tolist(), strict=True)],
        "seconds": seconds,
        "tokens": int(tokens),
        "tokens_per_second": tokens / seconds if seconds > 0 else None,
        "phases": {name: float(column.sum()) for name, column in run.phases.items()},
        "memory": {"estimate": run.estimate, "estimated_bytes": sum(run.estimate.values()) or None, "peak": run.peak},
        "watched": run.watched,
        "anomalies": run.anomalies,
        "bottlenecks": run.profile.get("bottlenecks"),
        **{name: summary.get(name) for name in ("model", "samples", "machine", "configuration", "fingerprint")},
    }
