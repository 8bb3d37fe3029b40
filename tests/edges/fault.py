"""A fault that was found by use, and what holds it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """What was given, and what is right. `tests` are ids of variations, and names of test functions as pytest has them
    (without parameters): one of them at least fails if the fault is back.
    """

    given: str
    right: str
    tests: tuple[str, ...]
