"""Files of examples: how they are spelled, packed and encoded, beside the JSON reader of the datasets library."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from pyarrow import feather, parquet

from entrenar.data import read_examples

from ..harness import Variation, Verdict, judge

AREA = "data files"
RECORDS = [{"prompt": f"What is {n}?\nSay it.", "completion": f"It is {n} « ☃ »."} for n in range(3)]
LINES = [json.dumps(record, ensure_ascii=False) for record in RECORDS]
JSONL, LIST = "\n".join(LINES) + "\n", json.dumps(RECORDS, ensure_ascii=False)
PLACE = "data"


def ours(path: Path) -> list[dict[str, str]]:
    examples = [example.messages for example in read_examples(path)]
    return [{"prompt": question["content"], "completion": answer["content"]} for question, answer in examples]


def library(path: Path) -> list[dict[str, str]]:
    """The records as `datasets` reads them, as TRL's programs do."""
    cache = path.parent / "cache"
    table = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache))
    return [{key: row[key] for key in ("prompt", "completion")} for row in table.to_list()]


def equal(
    name: str, file: str, content: str | bytes | Callable[[Path], Any], expected: list[dict[str, str]] | None = None
) -> Variation:
    """The file holds the records that the library finds; or `expected`, where the library is not asked."""

    def check(folder: Path) -> Verdict:
        path = folder / file
        if callable(content):
            content(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        reference = (lambda: library(path)) if expected is None else (lambda: expected)
        return judge(lambda: ours(path), reference, names=["\0"], compared=f"{len(RECORDS)} records")

    return Variation(AREA, name, "datasets" if expected is None else "the format's definition", check)


def refused(name: str, file: str, content: str | bytes | Callable[[Path], Any], *names: str) -> Variation:
    """The file is refused by a sentence with its name and these; a function makes it at the path that it gets."""

    def reference() -> Any:
        raise AssertionError("it was to be refused")

    def check(folder: Path) -> Verdict:
        path = folder / file
        if callable(content):
            content(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return judge(lambda: ours(path), reference, names=[file, *names], folder=folder)

    return Variation(AREA, name, "refused", check)


def spelled() -> Iterator[Variation]:
    """Line ends, marks, blanks, lists under either name."""
    one = RECORDS[:1]
    for suffix in ("jsonl", "json"):
        yield equal(f"JSON Lines under .{suffix}", f"data.{suffix}", JSONL)
        yield equal(f"a list under .{suffix}", f"data.{suffix}", LIST)
        yield equal(f"a list over many lines under .{suffix}", f"data.{suffix}", json.dumps(RECORDS, indent=2))
    yield equal("JSON Lines under .ndjson", "data.ndjson", JSONL)
    yield equal("JSON Lines without a suffix", "data", JSONL)
    yield equal("escapes for all but ASCII", "data.jsonl", "\n".join(json.dumps(record) for record in RECORDS))
    yield equal("no newline at the end", "data.jsonl", JSONL.rstrip())
    yield equal("a byte order mark", "data.jsonl", "\ufeff" + JSONL)
    yield equal("a byte order mark before a list", "data.json", "\ufeff" + LIST, RECORDS)
    yield equal("carriage returns and newlines", "data.jsonl", JSONL.replace("\n", "\r\n"))
    yield equal("carriage returns alone", "data.jsonl", JSONL.replace("\n", "\r"), RECORDS)
    yield equal("blank lines", "data.jsonl", "\n\n" + JSONL.replace("\n", "\n\n \n"))
    yield equal("blanks around the objects", "data.jsonl", "".join(f" \t{line} \t\n" for line in LINES))
    yield equal("blanks around a list", "data.json", f"\n {LIST} \n", RECORDS)
    yield equal("one object", "data.json", LINES[0], one)
    yield equal("one object over several lines", "data.json", json.dumps(RECORDS[0], indent=1), one)
    yield equal("line separators inside a text", "data.jsonl", JSONL.replace("«", "\u2028\u0085"))


def not_json() -> Iterator[Variation]:
    """What is no JSON, or is none that two readers would read alike."""
    yield refused("nothing", "data.jsonl", "", "no examples")
    yield refused("blanks alone", "data.jsonl", " \n\n", "no examples")
    yield refused("an empty list", "data.json", "[]", "no examples")
    yield refused("a line cut off", "data.jsonl", JSONL[:-20], "line 3", "JSON")
    yield refused("a list cut off", "data.json", LIST[:-20], "record 3", "JSON")
    yield refused("a list without its end", "data.json", LIST[:-1], "record 3", "end of the list")
    yield refused("a comma at a list's end", "data.json", LIST[:-1] + ",]", "record 4", "comma")
    yield refused("no comma in a list", "data.json", f"[{LINES[0]} {LINES[1]}]", "record 1", "comma")
    yield refused("a list and more", "data.json", LIST + LINES[0], "after the end")
    yield refused("commas at the ends of lines", "data.jsonl", ",\n".join(LINES), "line 1", "comma")
    yield refused("two objects in a line", "data.jsonl", JSONL + LINES[0] + LINES[1], "line 4", "Extra data")
    pretty = "\n".join(json.dumps(record, indent=1) for record in RECORDS)
    yield refused("objects over several lines", "data.jsonl", pretty, "several lines", "jq -c")
    yield refused("records under a key", "data.json", json.dumps({"train": RECORDS}), "'train'", "json.load")
    yield refused("columns", "data.json", json.dumps({"prompt": ["a"], "completion": ["b"]}), "prompt")
    yield refused("apostrophes", "data.jsonl", f"{RECORDS[0]!r}\n", "line 1", "double quotes")
    yield refused("a comment", "data.jsonl", f"{JSONL}// the end\n", "line 4", "JSON")
    for literal in ("NaN", "Infinity", "-Infinity"):
        line = LINES[0][:-1] + f', "score": {literal}}}'
        yield refused(f"the number {literal}", "data.jsonl", JSONL + line, "line 4", literal)
    yield refused("a key twice", "data.jsonl", JSONL + '{"prompt": "a", "prompt": "b"}', "line 4", "'prompt'", "twice")
    digits = LINES[0][:-1] + f', "n": {"9" * 5000}}}'
    yield refused("a number of 5,000 digits", "data.jsonl", JSONL + digits, "line 4", "digits")
    yield refused("a list's number of 5,000 digits", "data.json", f"[{digits}]", "record 1", "digits")
    nested = LINES[0][:-1] + f', "n": {"[" * 3000}{"]" * 3000}}}'
    yield refused("3,000 brackets", "data.jsonl", JSONL + nested, "line 4", "nested")
    yield refused("a list's 3,000 brackets", "data.json", f"[{nested}]", "record 1", "nested")
    for half in ("\\ud83d", "\\ude00"):
        line = json.dumps(RECORDS[0]).replace("It is", half)
        yield refused(f"half a character, {half}", "data.jsonl", JSONL + line, "line 4", "completion", half)
    yield refused("a newline inside a text", "data.jsonl", JSONL.replace("\\n", "\n"), "line 1", "JSON")
    yield refused("a tab inside a text", "data.jsonl", JSONL + '{"prompt": "a\tb"}', "line 4", "control character")


def encoded() -> Iterator[Variation]:
    """Other encodings of the same text."""
    for encoding in ("UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE"):
        for mark in ("", "\ufeff"):
            name = f"{encoding} {'with' if mark else 'without'} a mark"
            yield refused(name, "data.jsonl", (mark + JSONL).encode(encoding), f"iconv -f {encoding}")
    latin = JSONL.replace("☃", "ä")
    yield refused("Latin-1", "data.jsonl", latin.encode("latin-1"), "line 1", "iconv -f LATIN1")
    yield refused("Latin-1 in a list", "data.json", latin.encode("latin-1").join([b"[", b"]"]), "iconv -f LATIN1")
    yield refused("Windows-1252 in line 4", "data.jsonl", JSONL.encode() + '{"a": "“"}'.encode("cp1252"), "line 4")
    yield refused("NUL bytes after the records", "data.jsonl", JSONL.encode() + bytes(64), "NUL")
    yield refused("NUL bytes after 900 lines", "data.jsonl", JSONL.encode() * 300 + bytes(9), "line 901", "NUL")
    cut = JSONL.encode().rindex("☃".encode()) + 1
    yield refused("a cut character", "data.jsonl", JSONL.encode()[:cut], "line 3", "UTF-8")


def packed() -> Iterator[Variation]:
    """Compressed files, tables, and what is no file."""
    text = JSONL.encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.jsonl", text)
    yield refused("gzip", "data.jsonl.gz", gzip.compress(text), "gzip", "gunzip -c", "> ")
    yield refused("gzip under .jsonl", "data.jsonl", gzip.compress(text), "gunzip -c")
    yield refused("bzip2", "data.jsonl.bz2", bz2.compress(text), "bzip2 -dc")
    yield refused("xz", "data.jsonl.xz", lzma.compress(text), "xz -dc")
    yield refused("Zstandard", "data.jsonl.zst", pyarrow.compress(text, "zstd", asbytes=True), "zstd -dc")
    yield refused("zip", "data.zip", archive.getvalue(), "unzip -p")
    table = pyarrow.Table.from_pylist(RECORDS)
    yield equal("Parquet", "data.parquet", lambda path: parquet.write_table(table, path), RECORDS)
    yield refused("Arrow", "data.arrow", lambda path: feather.write_feather(table, path), "Arrow", "read_feather")

    def stream(path: Path) -> None:
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)

    yield refused("an Arrow stream", "data.arrow", stream, "Arrow stream", "Dataset.from_file")
    for name, delimiter in (("csv", ","), ("tsv", "\t")):
        out = io.StringIO()
        writer = csv.DictWriter(out, RECORDS[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(RECORDS)
        yield equal(name.upper(), f"data.{name}", out.getvalue(), RECORDS)
    under = "prompt,completion\na,b\n"
    yield equal("CSV under .jsonl", "data.jsonl", under, [{"prompt": "a", "completion": "b"}])
    yield refused("sentences under .jsonl", "data.jsonl", "Once, long ago, it was.\n", "line 1", "JSON")
    yield refused("a blank text file", "data.txt", " ", "data.txt", "expected non-empty text")
    yield refused("YAML", "data.yaml", "- prompt: a\n  completion: b\n", "JSON")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    yield refused("a pointer of Git LFS", "data.jsonl", pointer, "Git LFS", "git lfs pull")
    yield refused("a page of HTML", "data.jsonl", "<!DOCTYPE html>\n<html></html>\n", "HTML")
    yield refused("files joined with their marks", "data.jsonl", f"{JSONL}\ufeff{JSONL}", "line 4", "byte order mark")
    yield refused("a GGUF file", "data.gguf", b"GGUF" + bytes(64), "GGUF")
    yield refused("a pickle", "data.pkl", b"\x80\x04" + bytes(64), "pickle")
    yield refused("SQLite", "data.db", b"SQLite format 3\0" + bytes(64), "SQLite")
    yield refused("a folder", "data", Path.mkdir, "directory")
    yield refused("a pipe", "data.jsonl", os.mkfifo, "pipe")
    yield refused("a missing file", "data.jsonl", lambda path: None, "No such file")
    yield refused("a link to nothing", "data.jsonl", lambda path: path.symlink_to("none"), "No such file")

    def listening(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            descriptor = os.open(path.parent, os.O_DIRECTORY)
            server.bind(f"/proc/self/fd/{descriptor}/{path.name}")  # a socket's name is short
            os.close(descriptor)

    yield refused("a socket", "data.jsonl", listening, "socket")


VARIATIONS = [*spelled(), *not_json(), *encoded(), *packed()]
