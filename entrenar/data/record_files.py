"""Records of files that are no JSON: tables (CSV, TSV, Parquet) and plain texts, a file or a folder of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from entrenar.data.foreign_files import SNIFFED, check_regular, check_text, delimiter_of
from entrenar.data.json_records import MARK, RecordFile, no_utf8
from entrenar.data.places import Places
from entrenar.errors import ConfigError, FormatError

TEXTS = (".txt", ".text", ".md", ".rst")
PARQUET = b"PAR1"
BATCH = 256  # rows of Parquet that are made into objects at once
MOST_FIELD = 1 << 30  # characters of a field of CSV
# Columns of a table that hold JSON, since a table's cells are texts.
NESTED = ("messages", "conversations", "segments", "chat_template_kwargs")


class Records(Sequence[tuple[str, Any]]):
    """(where, record) of a file's records; `where` names the file and the place in it. `texts` are whole files."""

    path: Path
    texts = False
    lines = False  # whether it is JSON Lines

    def read(self, indices: Iterable[int]) -> Iterator[tuple[str, Any]]:
        """The records of these indices, in their order."""
        raise NotImplementedError

    def __getitem__(self, index: Any) -> Any:
        chosen = range(len(self))[index]
        return list(self.read(chosen)) if isinstance(chosen, range) else next(self.read([chosen]))

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self.read(range(len(self)))


def open_records(path: str | Path, *, text: bool = False) -> RecordFile | Records:
    """The records of a file by what it holds, or of a folder's text files; with `text` a file that is no JSON is text.

    Raises FormatError where it is nothing that is read, ConfigError where the package that reads it is missing.
    """
    path = Path(path)
    if _is_folder(path):
        return TextFiles(path, _texts_below(path))
    check_regular(path)
    with _reading(path), path.open("rb") as file:
        head = file.read(SNIFFED)
    if head.startswith(PARQUET):
        return ParquetFile(path)
    delimiter = delimiter_of(path, head)
    if delimiter:
        return TableFile(path, delimiter)
    json_like = head.removeprefix(MARK).lstrip()[:1] in (b"{", b"[")
    if path.suffix.lower() in TEXTS or (text and not json_like):
        check_text(path, head)
        return TextFiles(path, [path])
    return RecordFile(path)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except ValueError:  # a NUL in a name
        return False


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _texts_below(folder: Path) -> list[Path]:
    with _reading(folder):
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in TEXTS and path.is_file())
    if not found:
        raise FormatError(
            f"{folder}: is a directory without text files ({', '.join(TEXTS)}); give a folder that has some, or one of "
            "the files in it."
        )
    return found


def stored_bytes(path: str | Path) -> int:
    """Bytes of a file, or of a folder's text files; 0 where they cannot be read, which their reader says."""
    try:
        path = Path(path)
        return sum(file.stat().st_size for file in (_texts_below(path) if path.is_dir() else [path]))
    except (FormatError, OSError, ValueError):
        return 0


class TextFiles(Records):
    """Text files, each a record: all of it is one text."""

    texts = True

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path, self.files = path, files

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: Iterable[int]) -> Iterator[tuple[str, Any]]:
        """The texts of these files."""
        for index in indices:
            path = self.files[index]
            with _reading(path):
                content = path.read_bytes()
            check_text(path, content[:SNIFFED])
            try:
                yield str(path), {"text": content.removeprefix(MARK).decode("utf-8")}
            except UnicodeDecodeError as error:
                raise no_utf8(path, str(path), error.reason, error.start) from error


class TableFile(Records):
    """A CSV or TSV file (RFC 4180) whose first row names the columns; rows are found once and read one at a time.

    An empty cell is a missing value; the columns of NESTED hold JSON.
    """

    def __init__(self, path: Path, delimiter: str) -> None:
        self.path, self.delimiter = path, delimiter
        self._places = Places()
        csv.field_size_limit(MOST_FIELD)
        with _reading(path), path.open("rb") as file:
            check_text(path, file.read(SNIFFED))
            file.seek(0)
            self._find(file)

    def _find(self, file: io.BufferedReader) -> None:
        position, number = 0, 0
        lines = self._decoded(file)

        def counted() -> Iterator[str]:
            nonlocal position, number
            for size, line in lines:
                position, number = position + size, number + 1
                yield line

        rows = csv.reader(counted(), delimiter=self.delimiter, strict=True)
        try:
            self.columns = [name.strip() for name in next(rows, [])]
            start, line = position, number + 1
            for row in rows:
                if row:
                    self._check(row, line)
                    self._places.append(start, position, line)
                start, line = position, number + 1
        except csv.Error as error:
            raise FormatError(f"{self.path}, line {number}: is no row of CSV ({error}).") from error
        twice = [name for name in self.columns if self.columns.count(name) > 1]
        if twice:
            raise FormatError(f"{self.path}: has two columns {twice[0]!r}; keep one.")

    def _decoded(self, file: io.BufferedReader) -> Iterator[tuple[int, str]]:
        position = 0
        for line in file:
            try:
                text = line.decode("utf-8-sig" if not position else "utf-8")
            except UnicodeDecodeError as error:
                raise no_utf8(self.path, str(self.path), error.reason, position + error.start) from error
            position += len(line)
            yield len(line), text

    def _check(self, row: list[str], line: int) -> None:
        if len(row) != len(self.columns):
            raise FormatError(
                f"{self.path}, line {line}: has {len(row)} values, expected {len(self.columns)}, as the first row "
                "names columns; put values that hold a separator in double quotes."
            )

    def __len__(self) -> int:
        return len(self._places)

    def read(self, indices: Iterable[int]) -> Iterator[tuple[str, Any]]:
        """The rows of these indices, as objects of their columns."""
        with _reading(self.path), self.path.open("rb") as file:
            for index in indices:
                where = f"{self.path}, line {self._places.number(index)}"
                start, end = self._places.span(index)
                file.seek(start)
                text = file.read(end - start).decode("utf-8")
                row = next(csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter, strict=True), [])
                if len(row) != len(self.columns):
                    raise FormatError(f"{where}: changed while it was read.")
                yield where, _record(dict(zip(self.columns, row, strict=True)), where)


def _record(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A row without the cells that are empty, its nested columns read as JSON where they are texts."""
    record = {name: value for name, value in row.items() if value is not None and value != ""}
    for name in NESTED:
        if isinstance(record.get(name), str):
            try:
                record[name] = json.loads(record[name])
            except (ValueError, RecursionError) as error:
                raise FormatError(f"{where}: {name} is not JSON ({error}); expected a list or an object.") from error
    return record


class ParquetFile(Records):
    """A Parquet file, whose rows are read a group at a time, by pyarrow."""

    def __init__(self, path: Path) -> None:
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            raise ConfigError(
                f"{path}: is Parquet, which is read by pyarrow, and that is not installed; pip install "
                "'entrenar[parquet]'."
            ) from None
        self.path, self._error = path, ArrowException
        with self._checked():
            self._file = parquet.ParquetFile(path)
            metadata = self._file.metadata
        self._bounds = [0]
        for group in range(metadata.num_row_groups):
            self._bounds.append(self._bounds[-1] + metadata.row_group(group).num_rows)
        self._group: int | None = None
        self._rows: Any = None

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (self._error, OSError, ValueError) as error:
            reason = str(error).split("\n", 1)[0]
            raise FormatError(f"{self.path}: cannot be read as Parquet ({reason}).") from error

    def __len__(self) -> int:
        return self._bounds[-1]

    def read(self, indices: Iterable[int]) -> Iterator[tuple[str, Any]]:
        """The rows of these indices; one group of rows is held."""
        held: tuple[int, list[dict[str, Any]]] = (0, [])
        for index in indices:
            if not held[0] <= index < held[0] + len(held[1]):
                held = self._batch(index)
            where = f"{self.path}, row {index + 1}"
            yield where, _record(held[1][index - held[0]], where)

    def _batch(self, index: int) -> tuple[int, list[dict[str, Any]]]:
        group = next(number for number, end in enumerate(self._bounds[1:]) if index < end)
        with self._checked():
            if group != self._group:
                self._rows, self._group = self._file.read_row_group(group), group
            first = self._bounds[group] + (index - self._bounds[group]) // BATCH * BATCH
            return first, _without_null(self._rows.slice(first - self._bounds[group], BATCH).to_pylist())


def _without_null(value: Any) -> Any:
    """A column's structures have every key that one row has: keys that say nothing are left out, as JSON has them."""
    if isinstance(value, dict):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    return [_without_null(item) for item in value] if isinstance(value, list) else value
