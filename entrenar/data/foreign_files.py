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
        b"PAR1",
        "Parquet",
        f"{PYTHON} \"import pandas; pandas.read_parquet('{{name}}').to_json('{{out}}', orient='records', lines=True)\"",
    ),
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
        raise FormatError(f"{path}: cannot be read ({reason}); expected a .jsonl or .json file.") from error
    if stat.S_ISREG(status.st_mode):
        return status.st_size
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
    advice = "give one of the files in it" if stat.S_ISDIR(status.st_mode) else "write its content to a file first"
    raise FormatError(f"{path}: is {kind}, expected a .jsonl or .json file; {advice}.")


def check_text(path: Path, head: bytes) -> None:
    """FormatError, with a command that converts it, where `head` (the file's first bytes) is not that of UTF-8 JSON."""
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
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not first or first[:1] in b"{[":
        return
    _refuse_other_text(path, first)


def _encoding(head: bytes) -> str:
    for mark, name in ENCODINGS:
        if head.startswith(mark):
            return name
    if len(head) >= 4 and head[0] in b"{[ \n" and not head[1]:
        return "UTF-32LE" if not head[2] else "UTF-16LE"
    if len(head) >= 4 and not head[0]:
        return "UTF-32BE" if not head[1] and head[3] in b"{[ \n" else "UTF-16BE" if head[1] in b"{[ \n" else ""
    return ""


def _refuse_other_text(path: Path, first: bytes) -> None:
    line = first.split(b"\n", 1)[0].decode("utf-8", "replace").strip()
    suffix = path.suffix.lower()
    for delimiter, name in (("\t", "tab-separated values"), (",", "comma-separated values")):
        named = suffix == {"\t": ".tsv", ",": ".csv"}[delimiter]
        if named or (delimiter in line and all(HEADING.fullmatch(field) for field in line.split(delimiter))):
            code = (
                "import csv,json; [print(json.dumps(r)) for r in "
                f"csv.DictReader(open('{{name}}', encoding='utf-8-sig', newline=''), delimiter={delimiter!r})]"
            )
            advice = command(f'{PYTHON} "{code}" > {{output}}', path)
            raise FormatError(
                f"{path}: holds {name} (its first line is {line[:60]!r}), expected JSON or JSON Lines; "
                f"convert it: {advice} ."
            )
    if suffix in (".txt", ".md"):
        code = (
            "import json; t = open('{name}', encoding='utf-8').read(); "
            "[print(json.dumps({{'text': t[i:i+1500]}})) for i in range(0, len(t), 1500)]"
        )
        advice = command(f'{PYTHON} "{code}" > {{output}}', path)
        raise FormatError(
            f"{path}: is plain text, expected JSON or JSON Lines; to train on it in pieces of a row: {advice} ."
        )


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
