"""The message of every error is one printable line, whatever a file's names hold."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from entrenar import errors
from entrenar.errors import EntrenarError, FormatError, printable

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, EntrenarError)]


@pytest.mark.unit
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("found", "shown"),
    [
        ("a\nb\r\n", r"a\nb\r\n"),
        ("\x1b[31mred\x1b[0m\x07", r"\x1b[31mred\x1b[0m\x07"),
        ("lone \udc80 and \ud800", r"lone \udc80 and \ud800"),
        ("\u202eback\u2028line\x85\U000e0001", r"\u202eback\u2028line\x85\U000e0001"),
        ("naïve 漢字 \N{GRINNING FACE}", "naïve 漢字 \N{GRINNING FACE}"),
        (r"a\nb", r"a\nb"),
        ("", ""),
    ],
    ids=ascii,
)
def test_a_message_is_one_printable_line(kind: type[EntrenarError], found: str, shown: str) -> None:
    error = kind(f"{found}: is wrong.")
    assert str(error) == f"{error}" == f"{shown}: is wrong."
    assert str(error).isprintable()
    str(error).encode()  # no lone surrogate is left
    assert str(pickle.loads(pickle.dumps(error))) == str(copy.copy(error)) == str(error)


@pytest.mark.unit
def test_a_long_value_is_quoted_without_its_middle() -> None:
    text = str(FormatError(f"file.json: key is {'x' * 100_000!r}, expected a number."))
    assert len(text) < 1000
    assert text.startswith("file.json: key is 'xxx")
    assert text.endswith("xxx', expected a number.")
    assert " ... " in text


@pytest.mark.unit
def test_every_error_is_held_to_it() -> None:
    assert len(KINDS) >= 9
    assert EntrenarError in KINDS
    assert str(EntrenarError()) == ""
    assert printable("plain") == "plain"
