"""JSON from outside: an object, or one clear sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from entrenar.errors import FormatError


def read_json_object(path: Path, expected: str) -> dict[str, Any]:
    """The object in the file; FormatError where it cannot be read, is not JSON, or is no object."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); expected {expected}.") from error
    except (ValueError, RecursionError) as error:  # text that is no UTF-8 is a ValueError, deep nesting is recursion
        raise FormatError(f"{path}: is not JSON ({error}).") from error
    if not isinstance(table, dict):
        raise FormatError(f"{path}: holds a JSON {type(table).__name__}, expected an object.")
    return table
