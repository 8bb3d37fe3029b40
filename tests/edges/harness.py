"""Small changes to sound inputs, each read by entrenar and by the reference: equal, or refused in one true sentence.

A variation passes where both give the same (logits, ids, masks, merged weights, ...), or where entrenar refuses with a
sentence that names what it is about. A result that the reference does not give, any other exception and a sentence
that does not name the field all fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from entrenar.errors import EntrenarError

T = TypeVar("T")
LONGEST_SENTENCE = 700


class Wrong(AssertionError):
    """What a variation shows to be neither equal nor refused by name."""


@dataclass(frozen=True)
class Verdict:
    """`kind` is "equal" or "refused"; `note` the sentence of the refusal, or what was compared."""

    kind: str
    note: str


@dataclass(frozen=True)
class Variation:
    """One change to a sound input: `check` gets an empty folder of its own and returns the verdict, or raises Wrong."""

    area: str
    name: str
    reference: str
    check: Callable[[Path], Verdict]

    @property
    def id(self) -> str:
        """What the test is called."""
        return f"{self.area}: {self.name}"


def check_sentence(error: EntrenarError, names: Sequence[str], folder: Path | None = None) -> str:
    """The message, held to be one printable line that contains each of `names`; `folder` is left out of it."""
    text = str(error)
    shown = text.replace(f"{folder}/", "") if folder is not None else text
    if not text.isprintable():
        raise Wrong(f"the message is not one printable line: {text!r}")
    if not text.endswith((".", "?")) or len(shown) > LONGEST_SENTENCE:
        raise Wrong(f"the message is no sentence of at most {LONGEST_SENTENCE} characters: {text}")
    missing = [name for name in names if name not in text]
    if missing:
        raise Wrong(f"the message does not name {missing}: {text}")
    return shown


def judge(
    ours: Callable[[], T],
    reference: Callable[[], T],
    *,
    names: Sequence[str],
    folder: Path | None = None,
    difference: Callable[[T, T], str | None] | None = None,
    compared: str = "",
) -> Verdict:
    """Run both sides. `names` are the words that a refusal must contain; `difference` says what differs, None if equal.

    The reference runs only where entrenar gives a result, and must then give the same one.
    """
    try:
        found = ours()
    except EntrenarError as error:
        return Verdict("refused", check_sentence(error, names, folder))
    except BaseException as error:  # a panic of a library written in Rust is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | Wrong):
            raise
        raise Wrong(f"entrenar raised {type(error).__name__}: {error}") from error
    try:
        expected = reference()
    except Exception as error:
        raise Wrong(f"entrenar gives a result where the reference refuses ({type(error).__name__}: {error})") from error
    differs = (difference or different)(found, expected)
    if differs is not None:
        raise Wrong(differs)
    return Verdict("equal", compared)


def different(found: Any, expected: Any) -> str | None:
    """The default comparison: equal values, or the first place where they part."""
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple):
        for index, (a, b) in enumerate(zip(found, expected, strict=False)):
            if a != b:
                return f"entry {index} is {a!r}, expected {b!r}"
        return None if len(found) == len(expected) else f"{len(found)} entries, expected {len(expected)}"
    return None if found == expected else f"is {found!r}, expected {expected!r}"


def close(tolerance: float) -> Callable[[np.ndarray, np.ndarray], str | None]:
    """A comparison of arrays: the largest difference over the largest expected magnitude is within `tolerance`."""

    def compare(found: np.ndarray, expected: np.ndarray) -> str | None:
        if found.shape != expected.shape:
            return f"has shape {found.shape}, expected {expected.shape}"
        error = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
        return None if error <= tolerance else f"differs by {error:.2e} of the largest value, allowed {tolerance:.0e}"

    return compare
