"""The verb `inspect`: what a file or folder holds."""

from __future__ import annotations

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from entrenar.config import ArgumentParser, print_out, text_argument
from entrenar.errors import FormatError, printable
from entrenar.train import report

if TYPE_CHECKING:
    from entrenar.train.contents import Contents

DESCRIPTION = """Show what a file or folder holds: tensors, shapes, types, sizes and metadata. No weight is read.

    entrenar inspect model.gguf
    entrenar inspect --json outputs/qlora/adapter

PATH is a GGUF file, a safetensors file, a Hugging Face directory, an adapter's directory or a run's checkpoint.
"""
ROWS = 2000  # of a table; --json has all


def main(
    arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None
) -> dict[str, Any]:
    """Show a file; what --json prints. SystemExit for a wrong flag.

    FormatError where it is nothing that is read, and, after what it holds is shown, where it is damaged.
    """
    parser = ArgumentParser(
        prog=prog, description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("path", metavar="PATH", type=text_argument, help="file or folder")
    parser.add_argument("--json", action="store_true", help="print JSON (default: false)")
    parsed = parser.parse_args(arguments)
    from entrenar.train.contents import contents

    found = contents(parsed.path)
    table = found.table()
    if parsed.json:
        print_out(json.dumps(table, indent=2, ensure_ascii=True, allow_nan=False))
    else:
        show(report.Output(), found, table)
    if found.damaged:
        raise FormatError(str(found.problem))
    return table


def show(console: Console, found: Contents, table: dict[str, Any]) -> None:
    """The whole, its metadata and its tensors, for a person."""
    from entrenar.train.contents import as_text

    rows = {"kind": found.kind, "files": f"{len(found.files)} ({report.size(table['bytes'])})"}
    rows |= {"elements": f"{table['elements']:,} in {len(found.tensors)} tensors"}
    for name, count in table["types"].items():
        rows[name] = f"{count['tensors']} tensors, {count['elements']:,} elements, {report.size(count['bytes'])}"
    rows |= {key.replace("_", " "): printable(as_text(value)) for key, value in found.model.items()}
    report.summary(console, printable(found.path), {name: escape(value) for name, value in rows.items()})
    pairs = list(_pairs(found.metadata))
    if pairs:
        listed = Table(title=f"{len(pairs)} metadata entries", title_justify="left")
        listed.add_column("key", overflow="fold")
        listed.add_column("value", overflow="fold")
        for key, value in pairs[:ROWS]:
            listed.add_row(escape(printable(key)), escape(printable(as_text(value))))
        console.print(listed)
    tensors = Table(title=f"{len(found.tensors)} tensors", title_justify="left")
    for heading in ("name", "shape", "type", "size"):
        tensors.add_column(heading, justify="right" if heading == "size" else "left", overflow="fold")
    for tensor in found.tensors[:ROWS]:
        shape = " x ".join(map(str, tensor.shape)) or "scalar"
        tensors.add_row(escape(printable(tensor.name)), shape, escape(tensor.type), report.size(tensor.nbytes))
    console.print(tensors)
    for what, count in (("metadata entries", len(pairs)), ("tensors", len(found.tensors))):
        if count > ROWS:
            console.print(f"{count - ROWS:,} more {what}: --json has all.")
    report.remarks(console, found.remarks)
    if found.problem is not None and not found.damaged:
        report.remarks(console, [f"It does not load here: {found.problem}"])


def _pairs(metadata: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values, those of a file of JSON with its name before them."""
    for key, value in metadata.items():
        if isinstance(value, dict) and key.endswith(".json"):
            yield from ((f"{key}: {inner}", item) for inner, item in value.items())
        else:
            yield key, value
