"""The JSON records of a file, JSON Lines or one list, found once and read one at a time: never all in memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

from entrenar.data.foreign_files import SNIFFED, check_regular, check_text, command
from entrenar.data.places import Places
from entrenar.errors import FormatError

MARK = b"\xef\xbb\xbf"  # some editors begin a file with a byte order mark
WINDOW = 1 << 22  # bytes of a list that are decoded at once
BLANK = b" \t\r\n"


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is there twice in one object")
    return table


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)


def _problem(error: Exception) -> str:
    """What is wrong with a text that is not JSON."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg.removesuffix(' at').removesuffix(' starting')} at column {error.colno}"
    if isinstance(error, RecursionError):
        return "brackets are nested too deep"
    if "integer string conversion" in str(error):
        return "a number has too many digits"
    return str(error)


class RecordFile(Sequence[tuple[str, Any]]):
    """(where, record) of each JSON record of a file, in order; `where` names the file and the line or record.

    A file is JSON Lines, or one list, whatever its name ends in. Opening finds where each record begins; reading one
    parses it. Raises FormatError where the file is something else or cannot be read, or a record is not JSON.
    """

    texts = False  # no record is a whole text file

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.size = check_regular(self.path)
        self._places = Places()
        self._kind = "line"
        try:
            with self.path.open("rb") as file:
                self._find(file)
        except OSError as error:
            raise FormatError(
                f"{self.path}: cannot be read ({error.strerror}); expected a .jsonl or .json file."
            ) from error

    @property
    def lines(self) -> bool:
        """Whether it is JSON Lines, not a list."""
        return self._kind == "line"

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> tuple[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[tuple[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, Any] | Sequence[tuple[str, Any]]:
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return list(self.read(chosen))
        return next(self.read([chosen]))

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self.read(range(len(self)))

    def read(self, indices: Iterable[int]) -> Iterator[tuple[str, Any]]:
        """The records of these indices, in their order."""
        try:
            with self.path.open("rb") as file:
                for index in indices:
                    start, end = self._places.span(index)
                    file.seek(start)
                    content = file.read(end - start)
                    if len(content) != end - start:
                        raise FormatError(f"{self.path}: became shorter while it was read.")
                    yield self._where(index), self._parsed(content, index)
        except OSError as error:
            raise FormatError(f"{self.path}: cannot be read ({error.strerror}).") from error

    def _where(self, index: int) -> str:
        return f"{self.path}, {self._kind} {self._places.number(index)}"

    def _parsed(self, content: bytes, index: int) -> Any:
        where = self._where(index)
        if not self.lines:  # up to the next record of the list
            content = content.rstrip(BLANK).removesuffix(b",")
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise no_utf8(self.path, where, error.reason, self._places.span(index)[0] + error.start) from error
        try:
            return DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            if b"\0" in content:
                raise FormatError(f"{where}: holds NUL bytes; the file is damaged.") from error
            comma = text.rstrip().endswith("},") and "it ends in a comma, as a piece of a list does"
            mark = text.startswith("\ufeff") and "it begins with a byte order mark, as files that were joined do"
            raise FormatError(
                f"{where}: is not JSON ({comma or mark or _problem(error)}); expected one JSON object a line."
            ) from error

    def _find(self, file: BinaryIO) -> None:
        head = file.read(SNIFFED)
        check_text(self.path, head)
        begin = len(MARK) if head.startswith(MARK) else 0
        file.seek(begin)
        first = self._first_character(file)
        file.seek(begin)
        if first == b"[":
            self._kind = "record"
            self._find_in_list(file)
        else:
            self._find_lines(file, begin)
            if first == b"{" and len(self) > 1:
                self._join_lines()

    @staticmethod
    def _first_character(file: BinaryIO) -> bytes:
        while chunk := file.read(SNIFFED):
            if stripped := chunk.lstrip(BLANK):
                return stripped[:1]
        return b""

    def _find_lines(self, file: BinaryIO, position: int) -> None:
        """Lines end in a newline, a carriage return or both; none of these stands inside a text of JSON."""
        number = 0
        for chunk in file:
            parts = chunk.splitlines(keepends=True) if b"\r" in chunk else [chunk]
            for line in parts:
                number += 1
                if line.strip(BLANK):
                    self._places.append(position, position + len(line), number)
                position += len(line)

    def _join_lines(self) -> None:
        """One object written over several lines is one record; FormatError where several are."""
        try:
            self[0]
            return
        except FormatError as error:
            problem = error
        with self.path.open("rb") as file:
            start, following = self._places.span(0)
            file.seek(start)
            content = file.read()
        try:
            text = content.decode("utf-8")
            _, end = DECODER.raw_decode(text)
        except (ValueError, RecursionError):
            raise problem from None
        if len(text[:end].encode("utf-8")) <= following - start:
            raise problem  # the first line holds a whole object, and something else
        if text[end:].strip():
            advice = command("jq -c . {file} > {output}", self.path)
            raise FormatError(
                f"{self.path}: its objects go over several lines, expected one object a line; convert it: {advice} ."
            )
        whole = Places()
        whole.append(start, self._places.end, self._places.number(0))
        self._places = whole

    def _find_in_list(self, file: BinaryIO) -> None:
        text = _Window(file, self.path)
        text.skip("[")
        if text.peek() == "]":
            text.skip("]")
        else:
            while True:
                if text.peek() in ("]", ""):
                    raise text.not_json(len(self) + 1, "a record is missing after a comma")
                start = text.position
                text.value(len(self) + 1)
                self._places.append(start, text.position, len(self) + 1)
                following = text.peek()
                if following not in (",", "]"):
                    raise text.not_json(len(self), "a comma or the end of the list is missing after it")
                text.skip(following)
                if following == "]":
                    break
        if text.peek():
            raise FormatError(
                f"{self.path}: has more after the end of its list, expected one list of records, or one JSON object a "
                "line."
            )


class _Window:
    """A list's text, of which a few megabytes are held; `position` is that of the next byte."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.position = file.tell()
        self.text, self.at, self.ended = "", 0, False
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def _more(self) -> bool:
        """Read on; what was passed is let go. False at the end of the file."""
        if self.ended:
            return False
        self.text, self.at = self.text[self.at :], 0
        begin = self.file.tell() - len(self._decoder.getstate()[0])
        content = self.file.read(max(WINDOW, len(self.text)))  # twice as much, for a long record
        self.ended = not content
        try:
            self.text += self._decoder.decode(content, final=self.ended)
        except UnicodeDecodeError as error:
            raise no_utf8(self.path, str(self.path), error.reason, begin + error.start) from error
        return True

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
                self.position += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def skip(self, character: str) -> None:
        """Pass over `character`, which is next."""
        assert self.peek() == character
        self.at += 1
        self.position += 1

    def value(self, number: int) -> None:
        """Pass over one JSON value."""
        while True:
            try:
                _, end = DECODER.raw_decode(self.text, self.at)
            except (ValueError, RecursionError) as error:
                if isinstance(error, json.JSONDecodeError) and self._more():
                    continue
                raise self.not_json(number, _problem(error)) from error
            if end == len(self.text) and self._more():
                continue  # a number may go on
            self.position += len(self.text[self.at : end].encode("utf-8"))
            self.at = end
            return

    def not_json(self, number: int, problem: str) -> FormatError:
        """The error for the record of this number."""
        return FormatError(
            f"{self.path}: is not JSON (record {number}: {problem}); expected a list of records, or one JSON object a "
            "line."
        )


def no_utf8(path: Path, where: str, reason: str, byte: int) -> FormatError:
    """The error for bytes that are not UTF-8, the first of which is `byte`."""
    advice = command("iconv -f LATIN1 -t UTF-8 {file} > {output}", path)
    return FormatError(
        f"{where}: is not UTF-8 text ({reason} at byte {byte} of the file); if it is Latin-1, convert it: {advice} ."
    )
