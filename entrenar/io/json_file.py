"""JSON from outside: an object, or one clear sentence."""

from __future__ import annotations

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
        raise FormatError(f"{path}: holds a JSON {type(table).__name__}, expected an object.")
    return table


def parse_json(data: bytes, where: str) -> Any:
    """The value of UTF-8 JSON; FormatError, beginning with `where`, for text that is none or that no file needs."""
    try:
        return json.loads(data.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"{where}: is not JSON ({error}).") from error
    except RecursionError as error:
        raise FormatError(f"{where}: is not JSON that can be read: its brackets are nested too deeply.") from error
    except ValueError as error:  # the interpreter's bound for the digits of an integer
        raise FormatError(f"{where}: is not JSON that can be read: an integer has thousands of digits.") from error
