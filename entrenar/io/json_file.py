"""JSON from outside: an object, or one clear sentence."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from entrenar.errors import FormatError


def read_json_object(path: Path, expected: str) -> dict[str, Any]:
    """The object in the file; FormatError where it cannot be read, is not JSON, or is no object."""
    if path.exists() and not path.is_file():
        raise FormatError(f"{path}: is no regular file; expected {expected}.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); expected {expected}.") from error
    table = parse_json(data, str(path))
    if not isinstance(table, dict):
        raise FormatError(f"{path}: holds {_kind(table)}, expected an object.")
    return table


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds = ((str, "a text"), (list, "a list"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "a number")


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong with bytes that should be UTF-8, and what to do."""
    return f"is not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start}); save it as UTF-8"


def _problem(data: bytes, error: json.JSONDecodeError) -> str:
    if not data.strip():
        return "is empty, expected JSON; fetch it again"
    if data.startswith(codecs.BOM_UTF8):
        return "begins with a byte order mark, expected plain UTF-8; save it without the mark"
    return f"is not JSON ({error.msg} at line {error.lineno}, column {error.colno}); mend it or fetch it again"


def parse_json(data: bytes, where: str) -> Any:
    """The value of UTF-8 JSON; FormatError, beginning with `where`, for text that is none or that no file needs."""
    try:
        return json.loads(data.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise FormatError(f"{where}: {_problem(data, error)}.") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{where}: {not_utf8(error)}.") from error
    except RecursionError as error:
        raise FormatError(f"{where}: is not JSON that can be read: its brackets are nested too deeply.") from error
    except ValueError as error:  # the interpreter's bound for the digits of an integer
        raise FormatError(f"{where}: is not JSON that can be read: an integer has thousands of digits.") from error
