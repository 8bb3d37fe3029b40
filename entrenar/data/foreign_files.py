"""Files that are no JSON: what they are, told by their first bytes or lines, and how to make JSON Lines of them."""

from __future__ import annotations

import re
import shlex
import stat
from pathlib import Path

from entrenar.errors import FormatError

SNIFFED = 4096  # bytes
PYTHON = "python -c"
BINARY: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "gzip", "gunzip -c {file} > {output}"),
    (b"\x28\xb5\x2f\xfd", "Zstandard", "zstd -dc {file} > {output}"),
    (b"\xfd7zXZ\x00", "xz", "xz -dc {file} > {output}"),
    (b"BZh", "bzip2", "bzip2 -dc {file} > {output}"),
    (b"PK\x03\x04", "a zip archive", "unzip -p {file} > {output}"),
    (
        b"ARROW1",
        "Arrow",
        f"{PYTHON} \"import pandas; pandas.read_feather('{{name}}').to_json('{{out}}', orient='records', lines=True)\"",
    ),
    (
        b"\xff\xff\xff\xff",
        "an Arrow stream, as the datasets library saves it",
        f"{PYTHON} \"import datasets; datasets.Dataset.from_file('{{name}}').to_json('{{out}}')\"",
    ),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file that it stands for by `git lfs pull`"),
    (b"<!DOCTYPE", "an HTML page, as a download that failed leaves", "download it again"),
    (b"<!doctype", "an HTML page, as a download that failed leaves", "download it again"),
    (b"<html", "an HTML page, as a download that failed leaves", "download it again"),
    (b"SQLite format 3\x00", "an SQLite database", "give the examples as JSON Lines"),
    (b"GGUF", "a GGUF model file", "give the examples as JSON Lines"),
    (b"%PDF", "PDF", "give the examples as JSON Lines"),
    (b"\x80\x04", "a Python pickle", "give the examples as JSON Lines"),
    (b"\x80\x05", "a Python pickle", "give the examples as JSON Lines"),
)
EXPECTED = "a file of examples (JSON, CSV, Parquet, text) or a folder of texts"
SEPARATORS, TABLES = ("\t", ",", ";"), {".tsv": "\t", ".csv": ","}  # of values; by a file's name
HEADING = re.compile(r'"?[A-Za-z_][\w-]*"?')  # of a column
ENCODINGS = (  # the longer marks first: UTF-32's begins as UTF-16's does
    (b"\xff\xfe\x00\x00", "UTF-32LE"),
    (b"\x00\x00\xfe\xff", "UTF-32BE"),
    (b"\xff\xfe", "UTF-16LE"),
    (b"\xfe\xff", "UTF-16BE"),
)


def check_regular(path: Path) -> int:
    """The size of a file in bytes; FormatError where it is none, or none that can be read twice."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # a NUL in a name is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise FormatError(f"{path}: cannot be read ({reason}); expected {EXPECTED}.") from error
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
    raise FormatError(f"{path}: is {kind}, expected {EXPECTED}; write its content to a file first.")


def check_text(path: Path, head: bytes) -> None:
    """FormatError, with a command that converts it, where `head` (the file's first bytes) is not that of UTF-8 text."""
    for mark, what, template in BINARY:
        if head.startswith(mark):
            advice = f"convert it: {command(template, path)} " if "{out" in template else template
            raise FormatError(f"{path}: is {what}, expected JSON or JSON Lines; {advice}.")
    encoding = _encoding(head)
    if encoding:
        advice = command(f"iconv -f {encoding} -t UTF-8 {{file}} > {{output}}", path)
        raise FormatError(f"{path}: is {encoding} text, expected UTF-8; convert it: {advice} .")
    if b"\0" in head:
        raise FormatError(f"{path}: holds NUL bytes (the first at byte {head.index(0)}); it is damaged, or no text.")


def _encoding(head: bytes) -> str:
    for mark, name in ENCODINGS:
        if head.startswith(mark):
            return name
    if len(head) >= 4 and head[0] in b"{[ \n" and not head[1]:
        return "UTF-32LE" if not head[2] else "UTF-16LE"
    if len(head) >= 4 and not head[0]:
        return "UTF-32BE" if not head[1] and head[3] in b"{[ \n" else "UTF-16BE" if head[1] in b"{[ \n" else ""
    return ""


def delimiter_of(path: Path, head: bytes) -> str:
    """What separates the values of a table whose first bytes these are, told by its name or its first line; else ""."""
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    suffix = path.suffix.lower()
    if first[:1] in (b"{", b"[") or suffix in (".txt", ".md"):
        return ""
    line = first.split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    if suffix in TABLES:  # a single column named "instruction;output" would be of no use to anybody
        return next((mark for mark in (TABLES[suffix], *SEPARATORS) if mark in line), TABLES[suffix])
    for mark in SEPARATORS:
        if mark in line and all(HEADING.fullmatch(field) for field in line.split(mark)):
            return mark
    return ""


def command(template: str, path: Path) -> str:
    """The command with the file's name and the name of what it makes, quoted where the shell needs it."""
    base = path.name
    for suffix in (".gz", ".zst", ".xz", ".bz2", ".zip"):
        base = base.removesuffix(suffix)
    output = path.with_name(base if base.endswith((".jsonl", ".json")) and base != path.name else f"{path.stem}.jsonl")
    if output == path:
        output = path.with_name(f"{path.stem}.converted.jsonl")
    name, out = (str(value).replace("\\", "\\\\").replace("'", "\\'") for value in (path, output))
    return template.format(file=shlex.quote(str(path)), output=shlex.quote(str(output)), name=name, out=out)
