"""The verb `data`: `data check` says what is in a data file, as a model would be trained on it."""

from __future__ import annotations

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from entrenar.cli.flags import Parser
from entrenar.config import add_arguments, from_arguments, print_out, text_argument
from entrenar.errors import FormatError, printable
from entrenar.io.atomic import atomic_file
from entrenar.train import report
from entrenar.train.config import Data
from entrenar.train.options import Checked

if TYPE_CHECKING:
    from entrenar.train.data_check import DataCheck

DESCRIPTION = """Say what is in a data file, as a model would be trained on it.

    entrenar data check --data examples.jsonl --model DIRECTORY_OR_GGUF
    entrenar data check --data examples.jsonl --model base.gguf --html check.html
    entrenar data check --data examples.jsonl --eval-data held_out.jsonl --model base.gguf --json
    entrenar data check --data pairs.jsonl --preference dpo --model base.gguf

Counts, lengths, the share of tokens that is trained, duplicates, empty answers, the first record that is refused, and
samples in which what is trained is coloured. With --eval-data the same of that file, and how many of its records are
trained on too. With --preference the chosen and the rejected answer of each record, or the label of its answer, as
finetune reads them. Where a record is refused the status is 1, and the error stream has the sentence of the first.
"""


def main(
    arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None
) -> dict[str, Any]:
    """Check and print; what --json prints. EntrenarError for a wrong input, with the sentence of the first record that
    is refused after all is printed, SystemExit for a wrong flag."""
    parser = Parser(prog=prog, description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("action", choices=("check",), metavar="check", help="what to do (required)")
    add_arguments(parser, Checked)
    parser.add_argument(
        "--html", type=text_argument, metavar="FILE", help="write the report as one HTML file (default: unset)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON (default: false)")
    parsed = parser.parse_args(arguments)
    from entrenar.data import eval_sources
    from entrenar.train.data_check import check_data, page
    from entrenar.train.loading import open_checkpoint

    asked = from_arguments(Checked, parsed)
    checkpoint = open_checkpoint(asked.model)
    data = Data(
        path=asked.data,
        format=asked.format,
        max_examples=asked.max_examples,
        train_on_prompt=asked.train_on_prompt,
        answers=asked.answers,
        too_long=asked.too_long,
    )
    length = min(asked.sequence_length, checkpoint.config.context)
    model = (checkpoint.tokenizer(), checkpoint.config.vocab_size, length)
    check = partial(check_data, show=asked.show, preference=asked.preference)
    sides = [check(data, *model)]
    if asked.eval_data is not None:
        eval_sources(asked.eval_data)  # refuses what a run would
        sides.append(check(replace(data, path=asked.eval_data), *model, against=sides[0]))
    table: dict[str, Any] = sides[0].table()
    if len(sides) > 1:
        table["evaluation"] = sides[1].table()
    if parsed.html:
        with atomic_file(parsed.html) as file:
            file.write_text(page([(side, rows(side)) for side in sides]), encoding="utf-8", errors="backslashreplace")
    if parsed.json:
        print_out(json.dumps(table, indent=2))
    else:
        for side in sides:
            show(report.Output(), side)
    for side in sides:
        if side.bad is not None:
            raise FormatError(side.bad)
    return table


def rows(found: DataCheck) -> dict[str, str]:
    """What is said of a file, a line each."""
    read = found.report
    said = {
        "records": f"{found.records:,}",
        "refused": f"{found.bad_records:,}" + (f": the first is {found.bad}" if found.bad else ""),
        "left out": f"{sum(read.left_out.values()):,}",
        "samples": f"{read.samples:,} in rows of {found.sequence_length:,} tokens, the longest {found.longest:,}",
        "answers": ", ".join(f"{count:,} {name}" for name, count in found.answers.items()),
        "tokens": f"{read.tokens:,}, {found.trained_percent:.1f} % of them trained",
        "empty answers": f"{found.empty_answers:,}",
        "duplicates": f"{found.duplicates:,}"
        + (f": the first is {found.first_duplicate}" if found.first_duplicate else ""),
    }
    if found.overlap is not None:
        first = f": the first is {found.overlap.first}" if found.overlap.first else ""
        said["also trained on"] = f"{found.overlap.records:,}{first}"
    return {key: printable(value) for key, value in said.items() if value}


def show(console: Console, found: DataCheck) -> None:
    """The table, the histogram, the remarks, and samples with what is trained in green, or in « » without colours."""
    table = Table(show_header=False, title=escape(printable(found.source)), title_justify="left")
    for key, value in rows(found).items():
        table.add_row(key, escape(value))
    console.print(table)
    most = max((count for *_, count in found.lengths), default=1)
    for low, high, count in found.lengths:
        console.print(f"{low:>9,}-{high:<9,} {count:>9,} {'█' * -(-30 * count // most)}", highlight=False)
    report.remarks(console, found.remarks())
    plain = console.color_system is None or console.no_color
    how = "stands in « »" if plain else "is [green]green[/green]"
    for where, runs in found.shown:
        console.print(f"\n[bold]{escape(printable(where))}[/bold]: what is trained {how}", soft_wrap=True)
        text = Text()
        for trained, part in runs:
            shown = "".join(c if c == "\n" else printable(c) for c in part)
            text.append(f"«{shown}»" if plain and trained else shown, "bold green" if trained else "dim")
        console.print(text, soft_wrap=True)
