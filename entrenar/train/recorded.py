"""What a run left in its folder, read again: steps, summary, settings, hashes of its weights, its profile."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from entrenar.errors import FormatError
from entrenar.io.safetensors import open_safetensors
from entrenar.observe.anomaly import Step
from entrenar.observe.compare import Run
from entrenar.observe.records import json_lines
from entrenar.train import checkpoint
from entrenar.train.folder import JSON_LINES, PROFILE
from entrenar.train.summary import SUMMARY

WEIGHTS = ("adapter", "model")  # folders with the final weights of a run
# What came of a run, in its summary; everything else there is what it was given.
OUTCOMES = ("run", "written", "steps", "tokens", "trained_tokens", "held_out", "remarks", "samples", "memory")
OWN = "checkpointing.directory"  # every run has its own
KERNEL = ("calls", "seconds", "gflops", "gbs")  # the figures of a row of the profile that must be numbers


def read_run(folder: Path) -> Run:
    """Everything that a finished run, or one at its last checkpoint, left; FormatError where it is none or damaged."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        raise FormatError(f"{folder}: {what}; expected the output folder of a run.")
    steps = read_steps(folder / JSON_LINES)
    summary = _table(folder / SUMMARY)
    held_out = summary.get("held_out") or {}
    try:
        losses = {
            name: (float(held_out[name]["loss"]), int(held_out[name]["tokens"]))
            for name in ("before", "after")
            if held_out.get(name)
        }
        if not all(math.isfinite(loss) for loss, _ in losses.values()):
            raise ValueError("a loss that is not finite")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{folder / SUMMARY}: its held_out is damaged ({type(error).__name__}: {error}); expected loss and tokens."
        ) from error
    profile = _profile(folder / PROFILE) if (folder / PROFILE).exists() else None
    return Run(str(folder), steps, _settings(folder, summary), losses, _hashes(folder), profile)


def read_steps(path: Path) -> list[Step]:
    """The steps of a metrics.jsonl; FormatError, with the line, where it is none."""
    steps = list(json_lines(path, _step, "no step of a run", "expected metrics.jsonl", "expected the folder of a run"))
    if not steps:
        raise FormatError(f"{path}: holds no step; train at least one.")
    return steps


def _step(row: Any) -> Step:
    seconds, loss, norm = (float(row[name]) for name in ("seconds", "loss", "grad_norm"))
    phases, resources = (
        {str(key): float(value) for key, value in dict(row.get(name, {})).items()} for name in ("phases", "resources")
    )
    if not all(map(math.isfinite, [seconds, loss, norm, *phases.values()])):
        raise ValueError("a number that is not finite")
    return Step(int(row["step"]), 0.0, seconds, loss, norm, int(row["tokens"]), phases, resources)


def _settings(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was given, by dotted keys; of an earlier version's, what its checkpoint says."""
    given = {key: value for key, value in summary.items() if key not in OUTCOMES}
    parts = [given.pop("fingerprint", None) or _checkpointed(folder / "checkpoint"), given.pop("configuration", {})]
    found = {key: value for part in (*parts, given) for key, value in _flat(part)}
    return {key: value for key, value in found.items() if key != OWN}


def _table(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(table, dict):
            raise ValueError("no table")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FormatError(f"{path}: cannot be read ({reason}); expected what a run writes at its end.") from error
    return table


def _checkpointed(folder: Path) -> dict[str, Any]:
    """The settings and fingerprints in the newest checkpoint; empty where there is none."""
    found = checkpoint.steps_in(folder)
    if not found:
        return {}
    return checkpoint.fingerprint_of(found[0])


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a table by their dotted keys; a list is one."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of final weights, which must be whole."""
    found = {}
    for path in sorted(path for name in WEIGHTS for path in (folder / name).glob("*.safetensors")):
        open_safetensors(path)
        found[path.relative_to(folder).as_posix()] = checkpoint.digest(path)
    return found


def _profile(path: Path) -> dict[str, Any]:
    table = _table(path)
    try:
        steps = int(table["last_step"]) - int(table["first_step"]) + 1
        rows = [
            {"kernel": str(row["kernel"]), "shape": str(row["shape"]), **{name: float(row[name]) for name in KERNEL}}
            for row in table["kernels"]
        ]
        if steps < 1:
            raise ValueError(f"{steps} steps")
    except (ValueError, LookupError, TypeError) as error:
        raise FormatError(
            f"{path}: is no profile of a run ({type(error).__name__}: {error}); remove it to compare the rest."
        ) from error
    return {"steps": steps, "kernels": rows}
