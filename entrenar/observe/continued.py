"""Where a text file that a process left, killed perhaps in the middle of an entry, can be written on."""

from __future__ import annotations

import json
from typing import IO, NamedTuple

PIECE = 1 << 16
SPACE = b" \t\r\n\x00"  # of zeros is what a file system leaves when the power fails


class Tail(NamedTuple):
    """The bytes to keep, what comes between them and the next entry, and bytes of half an entry that are left out."""

    keep: int
    between: str
    cut: int = 0


def lines(file: IO[bytes]) -> Tail | None:
    """Of a file of JSON lines."""
    end = _end(file, file.seek(0, 2))
    start = _line_start(file, end)
    if start == end or _is_object(file, start, end):
        return Tail(end, "\n" if end else "")
    return Tail(start, "", end - start)


def array(file: IO[bytes]) -> Tail | None:
    """Of a JSON array with an entry a line, closed or not; None where it is none."""
    file.seek(0)
    if file.read(1) != b"[":
        return None
    end = _end(file, file.seek(0, 2))
    start = _line_start(file, end)
    if _text(file, start, end) == b"]":
        end = _end(file, start)
        start = _line_start(file, end)
    cut = 0
    if start and not _is_object(file, start, _entry_end(file, start, end)):
        cut, end = end - start, _end(file, start)
        start = _line_start(file, end)
    if start == 0:
        return Tail(1, "", cut) if end == 1 else None
    end = _entry_end(file, start, end)
    return Tail(end, ",", cut) if _is_object(file, start, end) else None


def _text(file: IO[bytes], start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _end(file: IO[bytes], end: int) -> int:
    """Where the text before `end` ends, without the space behind it."""
    while end:
        start = max(0, end - PIECE)
        left = len(_text(file, start, end).rstrip(SPACE))
        if left:
            return start + left
        end = start
    return 0


def _line_start(file: IO[bytes], end: int) -> int:
    """Where the line that ends at `end` begins."""
    while end:
        start = max(0, end - PIECE)
        at = _text(file, start, end).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0


def _entry_end(file: IO[bytes], start: int, end: int) -> int:
    """`end`, or before the comma there."""
    return end - 1 if end > start and _text(file, end - 1, end) == b"," else end


def _is_object(file: IO[bytes], start: int, end: int) -> bool:
    try:
        return isinstance(json.loads(_text(file, start, end)), dict)
    except (ValueError, RecursionError):
        return False
