"""The state of a run as plain values: what it has, and what is refused before anything of it is used."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from entrenar.autograd import Tensor
from entrenar.errors import EntrenarError, FormatError
from entrenar.train.evaluate import Evaluation
from entrenar.train.step import StepReport

KEYS = (
    "run",
    "date",
    "step",
    "schedule_steps",
    "optimizer",
    "schedule",
    "loader",
    "random",
    "weights",
    "reports",
    "baseline",
)
# What a state of any content raises where its values are used.
UNSOUND = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)


@contextmanager
def sound() -> Iterator[None]:
    """What does not fit in a state, as one sentence."""
    try:
        yield
    except EntrenarError:
        raise
    except UNSOUND as error:
        raise FormatError(f"The state holds what no run writes ({type(error).__name__}: {error}).") from error


def check(state: Mapping[str, Any], parameters: Sequence[tuple[str, Tensor]]) -> None:
    """FormatError where a state lacks a part, has other weights, or its whole numbers are none or contradict."""
    for key in KEYS:
        if key not in state:
            raise FormatError(f"The state has no {key}; expected what state_dict() gave.")
    for name, tensor in parameters:
        shape = np.shape(state["weights"].get(name))
        if shape != tensor.shape:
            raise FormatError(f"Its weight {name} has shape {shape}, expected {tensor.shape}.")
    step, schedule, loader = state["step"], state["schedule"], state["loader"]
    counts = {
        "step": step,
        "schedule_steps": state["schedule_steps"],
        "schedule": schedule["last_step"],
        "epoch": loader["epoch"],
        "row": loader["position"],
    }
    for name, value in counts.items():
        if type(value) is not int or not 0 <= value < 1 << 63:
            raise FormatError(f"Its {name} is {value!r}, expected a whole number.")
    if not step == len(state["reports"]) == schedule["last_step"]:
        raise FormatError(f"It stands at step {step} after {len(state['reports'])} reports.")


def plain(reports: Sequence[StepReport]) -> list[dict[str, Any]]:
    """The reports as values that JSON can hold."""
    return [asdict(report) for report in reports]


def reports(stored: Any) -> list[StepReport]:
    """The reports that `plain` gave; ValueError where a figure is none."""
    found = []
    for values in stored:
        held_out = values["held_out"]
        tables: dict[str, Any] = {key: dict(values.get(key, {})) for key in ("phases", "resources")}
        others = {key: value for key, value in values.items() if key != "held_out" and key not in tables}
        numbers = [*others.values(), *(held_out or {}).values()]
        numbers += [number for table in tables.values() for number in table.values()]
        if not all(type(value) in (int, float) and math.isfinite(value) for value in numbers):
            raise ValueError(f"a report with {numbers}")
        evaluation = None if held_out is None else Evaluation(**held_out)
        found.append(StepReport(**others, held_out=evaluation, **tables))
    return found
