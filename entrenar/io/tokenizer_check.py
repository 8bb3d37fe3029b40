"""tokenizer.json held to sizes before the library sees it, which reserves memory for whatever a file says."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from entrenar.config import shown
from entrenar.errors import FormatError
from entrenar.io.json_file import read_json_object

MOST_BYTES = 1 << 28  # of the file: real ones have under 40 MB
MOST_ID = 1 << 22  # of a token: real vocabularies have under a million entries
MOST_TEXT = 1 << 16  # characters of one token or pattern
MOST_COMPONENTS = 256  # normalizers, pre-tokenizers, ... in all
MOST_NUMBER = MOST_ID  # of any count or id that a component is given


def read_tokenizer_json(path: Path) -> dict[str, Any]:
    """The object in the file; FormatError where it is too large, is no JSON object or has an impossible size in it."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); expected a tokenizer.json.") from error
    if size > MOST_BYTES:
        raise FormatError(f"{path}: has {size} bytes, more than the {MOST_BYTES} that a tokenizer.json may have.")
    table = read_json_object(path, "a tokenizer.json")
    _Check(path).table(table)
    return table


class _Check:
    def __init__(self, path: Path) -> None:
        self.path = path

    def wrong(self, where: str, found: Any, expected: str) -> FormatError:
        return FormatError(f"{self.path}: {where} is {shown(found)}, expected {expected}; the file is damaged.")

    def table(self, table: Mapping[str, Any]) -> None:
        model = table.get("model")
        if not isinstance(model, Mapping):
            raise self.wrong("model", model, "an object")
        self.vocabulary(model.get("vocab"))
        self.prefix(model)
        added = table.get("added_tokens") or []
        if not isinstance(added, list):
            raise self.wrong("added_tokens", added, "a list")
        for number, token in enumerate(added):
            where = f"added_tokens[{number}]"
            if not isinstance(token, Mapping):
                raise self.wrong(where, token, "an object")
            self.id(f"{where}.id", token.get("id"))
            self.text(f"{where}.content", token.get("content"))
        rest = {key: value for key, value in model.items() if key not in ("vocab", "merges")}
        self.components({"model": rest, **{k: v for k, v in table.items() if k not in ("model", "added_tokens")}})

    def id(self, where: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MOST_ID:
            raise self.wrong(where, value, f"a number from 0 to {MOST_ID - 1}")

    def text(self, where: str, value: Any) -> None:
        if not isinstance(value, str) or len(value) > MOST_TEXT:
            raise self.wrong(where, value, f"a text of at most {MOST_TEXT} characters")

    def vocabulary(self, entries: Any) -> None:
        if isinstance(entries, Mapping):
            for token, index in entries.items():
                self.id(f"model.vocab[{token[:40]!r}]", index)
        elif not isinstance(entries, list):
            raise self.wrong("model.vocab", entries, "an object, or a list of tokens with their scores")
        if len(entries) > MOST_ID:
            raise self.wrong("the length of model.vocab", len(entries), f"at most {MOST_ID}")

    def prefix(self, model: Mapping[str, Any]) -> None:
        """The library cuts the prefix's bytes off each merge's right part, and ends the process inside a character."""
        prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
        if not prefix or not isinstance(merges, list) or model.get("type", "BPE") != "BPE":
            return
        self.text("model.continuing_subword_prefix", prefix)
        length = len(prefix.encode("utf-8", "surrogatepass"))
        for number, merge in enumerate(merges):
            pair = merge.split(" ") if isinstance(merge, str) else merge
            right = pair[-1] if isinstance(pair, list) and pair else ""
            data = right.encode("utf-8", "surrogatepass") if isinstance(right, str) else b""
            if len(data) < length or (len(data) > length and data[length] & 0xC0 == 0x80):
                raise self.wrong(
                    f"model.merges[{number}]", merge, f"a right part that begins with the prefix {prefix[:40]!r}"
                )

    def components(self, table: Mapping[str, Any]) -> None:
        count = 0
        for where, value in _leaves(table, ""):
            count += where.endswith(".type")
            if count > MOST_COMPONENTS:
                raise self.wrong("the number of components", count, f"at most {MOST_COMPONENTS}")
            if where.endswith(".precompiled_charsmap"):
                self.charsmap(where[1:], value)
            if isinstance(value, bool) or not isinstance(value, int):
                continue
            if abs(value) > MOST_NUMBER and not where.startswith((".truncation", ".padding")):
                raise self.wrong(where[1:], value, f"at most {MOST_NUMBER}")
            if where.endswith(".length") and value < 1:
                raise self.wrong(where[1:], value, "at least 1")

    def charsmap(self, where: str, value: Any) -> None:
        """Its first four bytes are the size of a table that follows, for which the library reserves memory unseen."""
        try:
            data = base64.b64decode(value, validate=True)
        except (ValueError, TypeError):
            raise self.wrong(where, value, "text in base64") from None
        if len(data) < 4:
            raise self.wrong(where, value, "the size of a table in its first 4 bytes")
        size = int.from_bytes(data[:4], "little")
        if size > len(data) - 4:
            raise self.wrong(where, value, f"a table of {size} bytes, and it has {len(data) - 4}")


def _leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """(path, value) of every number and text inside; the path is '.a.b[0].c'."""
    waiting = [(where, value)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{where}.{key}", entry) for key, entry in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{where}[{number}]", entry) for number, entry in enumerate(value)]
        else:
            yield where, value
