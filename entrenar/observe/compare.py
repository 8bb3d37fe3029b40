"""How two runs differ: configuration, bits, loss, speed, phases and kernels, as one table of values.

Speed is compared by medians, with intervals by a circular block bootstrap (Politis and Romano, 1992): neighbouring
steps of a run are alike, so that whole blocks of them are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from entrenar.observe.anomaly import Step
from entrenar.observe.tolerance import Tolerance

FEW = 6  # common steps, below which speed is not judged
DRAWS, SEED = 2000, 0
CONFIDENCE = 0.95
ABSENT = "absent"
ARITHMETIC = ("fp32", "int16", "int8")  # the last word of a product's shape


@dataclass(frozen=True)
class Run:
    """What a run recorded. `held_out` has loss and tokens, before and after; `files` are SHA-256 by name.

    `profile` has the number of its steps and a row for each kernel and shape, None where it was not profiled.
    """

    name: str
    steps: Sequence[Step]
    settings: Mapping[str, Any]
    held_out: Mapping[str, tuple[float, int]]
    files: Mapping[str, str]
    profile: Mapping[str, Any] | None


def compare(first: Run, second: Run, tolerance: Tolerance) -> dict[str, Any]:
    """Every difference as values that JSON can hold; `beyond` has a sentence for each one beyond the tolerance."""
    mine = {step.step: step for step in first.steps}
    theirs = {step.step: step for step in second.steps}
    pairs = [(mine[step], theirs[step]) for step in sorted(mine.keys() & theirs.keys())]
    table: dict[str, Any] = {
        "runs": [first.name, second.name],
        "steps": [len(mine), len(theirs)],
        "common_steps": len(pairs),
        "configuration": _configuration(first.settings, second.settings),
        "bits": _bits(pairs),
        "files": _files(first.files, second.files),
        "loss": _loss(pairs),
        "held_out": _held_out(first.held_out, second.held_out),
        "speed": _speed(pairs),
        "phases": _phases(pairs),
        "kernels": _kernels(first.profile, second.profile),
        "tolerance": {"loss": tolerance.loss_tolerance, "speed": tolerance.speed_tolerance},
    }
    table["beyond"], table["undecided"] = _verdict(table, tolerance)
    return table


def _configuration(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[dict[str, Any]]:
    keys = [*mine, *(key for key in theirs if key not in mine)]
    rows = [{"key": key, "first": mine.get(key, ABSENT), "second": theirs.get(key, ABSENT)} for key in keys]
    return [row for row in rows if row["first"] != row["second"]]


def _bits(pairs: Sequence[tuple[Step, Step]]) -> dict[str, Any]:
    """The first step whose loss or gradient norm has other bits; JSON keeps all bits of a double."""
    for one, other in pairs:
        for name in ("loss", "grad_norm"):
            values = getattr(one, name), getattr(other, name)
            if values[0].hex() != values[1].hex():
                return {"same": False, "step": one.step, "quantity": name, "first": values[0], "second": values[1]}
    return {"same": bool(pairs)}


def _files(mine: Mapping[str, str], theirs: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"file": name, "first": mine.get(name), "second": theirs.get(name), "same": mine.get(name) == theirs.get(name)}
        for name in sorted(mine.keys() | theirs.keys())
    ]


def _relative(one: float, other: float) -> float:
    """How much the second value differs from the first, as a share of the first."""
    return (other - one) / max(abs(one), 1e-300) if other != one else 0.0


def _loss(pairs: Sequence[tuple[Step, Step]]) -> dict[str, Any] | None:
    """The mean loss of the last tenth of the common steps."""
    if not pairs:
        return None
    last = pairs[-max(1, len(pairs) // 10) :]
    first, second = (sum(pair[side].loss for pair in last) / len(last) for side in (0, 1))
    return {
        "first": first,
        "second": second,
        "relative": _relative(first, second),
        "steps": [last[0][0].step, last[-1][0].step],
    }


def _held_out(mine: Mapping[str, tuple[float, int]], theirs: Mapping[str, tuple[float, int]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for when in ("before", "after"):
        if when in mine and when in theirs:
            (one, size), (other, other_size) = mine[when], theirs[when]
            row = {"when": when, "first": one, "second": other, "tokens": [size, other_size]}
            rows.append(row | {"relative": _relative(one, other) if size == other_size else None})
    return rows


def interval(columns: np.ndarray) -> tuple[float, float, float]:
    """The median over the rows of `columns` (of two: the second's minus the first's), and its 95 % interval."""
    count = len(columns)
    length = max(1, round(count ** (1 / 3)))
    starts = np.random.default_rng(SEED).integers(0, count, (DRAWS, columns.shape[1], -(-count // length)))
    places = ((starts[..., None] + np.arange(length)) % count).reshape(DRAWS, columns.shape[1], -1)[..., :count]

    def estimate(medians: np.ndarray) -> np.ndarray:
        return medians[..., -1] - (medians[..., 0] if columns.shape[1] == 2 else 0.0)

    drawn = [np.median(columns[places[:, side], side], axis=1) for side in range(columns.shape[1])]
    low, high = np.quantile(estimate(np.stack(drawn, axis=-1)), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(estimate(np.median(columns, axis=0))), float(low), float(high)


def _speed(pairs: Sequence[tuple[Step, Step]]) -> dict[str, Any] | None:
    """Median seconds of a step and their ratio; by step where both had the same tokens, else seconds per token."""
    pairs = [pair for pair in pairs if all(step.seconds > 0 and step.tokens > 0 for step in pair)]
    if not pairs:
        return None
    paired = all(one.tokens == other.tokens for one, other in pairs)
    sides = [[math.log(pair[side].seconds / pair[side].tokens) for pair in pairs] for side in (0, 1)]
    both = np.array(sides).T
    ratio, low, high = interval(both[:, 1:] - both[:, :1] if paired else both)
    table: dict[str, Any] = {"paired": paired, "ratio": math.exp(ratio)}
    known = len(pairs) >= FEW
    table["interval"] = [math.exp(low), math.exp(high)] if known else None
    for side, name in enumerate(("first", "second")):
        seconds = np.array([[math.log(pair[side].seconds)] for pair in pairs])
        middle, low, high = (math.exp(value) for value in interval(seconds))
        tokens = sum(pair[side].tokens for pair in pairs) / sum(pair[side].seconds for pair in pairs)
        table[name] = {"seconds": middle, "interval": [low, high] if known else None, "tokens_per_second": tokens}
    return table


def _phases(pairs: Sequence[tuple[Step, Step]]) -> list[dict[str, Any]]:
    """Median seconds of each phase over the steps that had it."""
    names = dict.fromkeys(name for pair in pairs for step in pair for name in step.phases)
    rows = []
    for name in names:
        found = [[pair[side].phases[name] for pair in pairs if name in pair[side].phases] for side in (0, 1)]
        rows.append(_ratio_row({"phase": name}, *(median(values) if values else None for values in found)))
    return rows


def _ratio_row(named: dict[str, Any], first: float | None, second: float | None) -> dict[str, Any]:
    ratio = second / first if first and second is not None else None
    return {**named, "first": first, "second": second, "ratio": ratio}


def _kernels(mine: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None) -> list[dict[str, Any]] | None:
    """Seconds a step of each kernel and shape, what differs most first; None where a profile is missing.

    A shape that one run alone has is set against the same one in another arithmetic.
    """
    if mine is None or theirs is None:
        return None
    sides = [{(row["kernel"], row["shape"]): row for row in side["kernels"]} for side in (mine, theirs)]
    couples: dict[tuple[str, str], list[Mapping[str, Any] | None]] = {}
    for side, other in ((0, 1), (1, 0)):
        for (kernel, shape), row in sides[side].items():
            head, _, last = shape.rpartition(" ")
            known = (kernel, shape) in sides[other] or last not in ARITHMETIC
            couple = couples.setdefault((kernel, shape if known else head), [None, None])
            if couple[side] is not None:  # the same shape in two arithmetics
                couple = couples.setdefault((kernel, shape), [None, None])
            couple[side] = row
    rows = []
    for (kernel, shape), found in couples.items():
        last = [each["shape"].removeprefix(shape).strip() for each in found if each]
        shape = f"{shape} {' / '.join(dict.fromkeys(last))}".strip()
        seconds: list[float | None] = [
            each["seconds"] / profile["steps"] if each else None
            for each, profile in zip(found, (mine, theirs), strict=True)
        ]
        row = _ratio_row({"kernel": kernel, "shape": shape}, *seconds)
        rows.append(row | {"gflops": [each and each["gflops"] for each in found]})
    return sorted(rows, key=lambda row: -abs((row["second"] or 0.0) - (row["first"] or 0.0)))


def _verdict(table: Mapping[str, Any], tolerance: Tolerance) -> tuple[list[str], list[str]]:
    """Sentences: what is beyond the tolerance, and what cannot be told."""
    beyond, undecided = [], []
    losses = [("the training loss", table["loss"])] if table["loss"] else []
    losses += [(f"the held-out loss {row['when']}", row) for row in table["held_out"]]
    for what, row in losses:
        if row["relative"] is None:
            undecided.append(f"{what} is over other examples ({row['tokens'][0]} and {row['tokens'][1]} tokens)")
        elif abs(row["relative"]) > tolerance.loss_tolerance:
            sign = "higher" if row["relative"] > 0 else "lower"
            beyond.append(f"{what} is {100 * abs(row['relative']):.3g} % {sign}")
    speed = table["speed"]
    slower = f"a step takes {speed['ratio']:.3f} times as long" if speed else ""
    if speed is None or speed["interval"] is None:
        undecided.append(f"speed: {table['common_steps']} steps in common, of {FEW} that it takes")
    elif speed["ratio"] > 1 + tolerance.speed_tolerance and speed["interval"][0] > 1:
        beyond.append(slower)
    elif speed["ratio"] > 1 + tolerance.speed_tolerance:
        undecided.append(f"{slower}, within the noise of the two runs")
    return beyond, undecided
