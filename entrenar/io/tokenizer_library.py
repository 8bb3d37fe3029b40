"""Calls into the `tokenizers` library, which is written in Rust: its errors and panics become one sentence.

A panic of the library is no Exception, and it prints itself to standard error before it can be caught.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from entrenar.errors import FormatError

if TYPE_CHECKING:
    import tokenizers

SECTIONS = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "added_tokens")
# Every kind of character that a component may fail on: none, white space, controls, letters that no vocabulary has
PROBES = (
    "",
    "a",
    " a  b\n",
    "It's 1234 x\t",
    "\x00\x7f\u00a0\u2028",
    "e\u0301 ß İ ﬁ 中 🎉\U0010ffff\ue000",
    "Aa" * 120,
)
_lock = threading.Lock()


@contextlib.contextmanager
def _without_standard_error() -> Iterator[None]:
    """Nothing that the library writes is shown: a panic comes with a program's source lines and a backtrace."""
    with _lock:
        saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            os.close(nowhere)


def is_failure(error: BaseException) -> bool:
    """Whether the library failed: with an Exception, or with a panic."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def said(error: BaseException) -> str:
    """What an error says, in one line without a full stop."""
    return str(error).partition("\n")[0].rstrip(". ") or type(error).__name__


def load(text: str, where: str, table: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """The tokenizer of a tokenizer.json's `text`, tried on probes; `table` is the same as an object.

    Raises FormatError that names the component which the library cannot make or which fails on a text.
    """
    import tokenizers

    try:
        with _without_standard_error():
            backend = tokenizers.Tokenizer.from_str(text)
            try_out(backend)
    except BaseException as error:
        if not is_failure(error):
            raise
        raise FormatError(
            f"{where}: {_guilty(table)} does not work ({said(error)}); take the file that the model was published with."
        ) from error
    return backend


def try_out(backend: tokenizers.Tokenizer) -> None:
    """Encode and decode the probes, so that what fails later fails now."""
    for text in PROBES:
        for special in (False, True):
            ids = backend.encode(text, add_special_tokens=special).ids
            backend.decode(ids, skip_special_tokens=special)
    backend.decode(list(range(min(backend.get_vocab_size(), 64))))


def _guilty(table: Mapping[str, Any]) -> str:
    """The section that fails alone beside a plain model, else the one without which the rest works."""
    sections = [section for section in SECTIONS if table.get(section) is not None]
    plain = {"version": "1.0", "added_tokens": [], "model": _plain_model()}
    alone = {section: plain | {section: table[section]} for section in sections}
    without = {section: {**table, section: plain.get(section)} for section in sections}
    guilty = [section for section in sections if not _works(alone[section])]
    guilty = guilty or [section for section in sections if _works(without[section])]
    if not guilty:
        return "what it holds together"
    kind = table[guilty[0]].get("type") if isinstance(table[guilty[0]], Mapping) else None
    return f"its {guilty[0]} ({kind})" if isinstance(kind, str) else f"its {guilty[0]}"


def _works(table: Mapping[str, Any]) -> bool:
    import tokenizers

    try:
        with _without_standard_error():
            try_out(tokenizers.Tokenizer.from_str(json.dumps(table)))
    except BaseException as error:
        if not is_failure(error):
            raise
        return False
    return True


def _plain_model() -> dict[str, Any]:
    letters = sorted({character for text in PROBES for character in text} | {"<unk>"})
    return {"type": "BPE", "vocab": {letter: i for i, letter in enumerate(letters)}, "merges": [], "unk_token": "<unk>"}


@contextlib.contextmanager
def making(what: str) -> Iterator[None]:
    """What is made inside with the library raises FormatError that begins with `what`."""
    try:
        with _without_standard_error():
            yield
    except FormatError:
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        raise FormatError(f"{what} ({said(error)}).") from error
