"""Files of records, a JSON object a line, each read with a sentence for what is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from entrenar.errors import EntrenarError, FormatError

T = TypeVar("T")
# What a record of any content raises where its values are used.
UNSOUND = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


def text_of(path: Path, expected: str) -> str:
    """The file's text; FormatError, with what was expected, where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FormatError(f"{path}: cannot be read ({reason}); {expected}.") from error


def parsed(path: Path, lines: Iterable[Any], read: Callable[[Any], T], what: str, advice: str) -> Iterator[T]:
    """Each line as `read` makes it; FormatError with the line's number, `what` it is and what to do."""
    for number, line in enumerate(lines, 1):
        try:
            yield read(line)
        except (*UNSOUND, EntrenarError) as error:
            raise FormatError(f"{path}: line {number} is {what} ({_reason(error)}); {advice}.") from error


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no key {error}"
    name = "" if isinstance(error, EntrenarError | ValueError) else f"{type(error).__name__}: "
    return f"{name}{str(error).rstrip('.')}"


def json_lines(path: Path, read: Callable[[Any], T], what: str, advice: str, expected: str) -> Iterator[T]:
    """Each line's value as `read` makes it; FormatError as `text_of` and `parsed` say."""
    return parsed(path, text_of(path, expected).splitlines(), lambda line: read(json.loads(line)), what, advice)
