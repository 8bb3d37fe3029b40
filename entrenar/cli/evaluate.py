"""The verb `evaluate`: loss and perplexity of a model, or of several adapters over one base, on examples."""

from __future__ import annotations

import json
import math
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from entrenar.cli.flags import Parser, add_adapters
from entrenar.config import add_arguments, from_arguments, print_out
from entrenar.errors import ConfigError, printable
from entrenar.train import report
from entrenar.train.options import Rows, SourceOptions

if TYPE_CHECKING:
    from entrenar.data import SideReport
    from entrenar.train.evaluate import Evaluation
    from entrenar.train.loading import Source

DESCRIPTION = """Measure the loss and perplexity of a model on examples, with an adapter or without.

    entrenar evaluate --model DIRECTORY_OR_GGUF --data examples.jsonl
    entrenar evaluate --model base.gguf --adapter outputs/qlora/adapter --data examples.jsonl --json
    entrenar evaluate --model base.gguf --adapter outputs/a/adapter outputs/b/adapter --compare --data examples.jsonl

The loss is the mean cross-entropy of a trained token, in nats: of answers, or of everything in plain texts. --json
prints {"loss", "perplexity", "tokens", "examples"}; of several, a list "results" of such, each with its "adapter".
"examples" counts those that were read, cut or split because they are longer than a row, and left out.
"""


def main(
    arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None
) -> dict[str, Any]:
    """Evaluate and print; what --json prints. EntrenarError for a wrong input, SystemExit for a wrong flag."""
    parser = Parser(prog=prog, description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    add_arguments(parser, SourceOptions)
    add_adapters(parser, "each put on the base alone")
    parser.add_argument(
        "--compare", action="store_true", help="evaluate the base without an adapter too (default: false)"
    )
    add_arguments(parser, Rows)
    parser.add_argument("--json", action="store_true", help="print JSON (default: false)")
    parsed = parser.parse_args(arguments)
    if parsed.compare and not parsed.adapter:
        raise ConfigError("--compare has nothing to compare the base with; give one --adapter or several.")
    from entrenar.train.loading import Source

    places: list[str | None] = [*([None] if parsed.compare or not parsed.adapter else []), *parsed.adapter]
    # progress goes to the error stream where standard output is JSON
    console = Console(stderr=True, quiet=not report.Output(stderr=True).is_terminal) if parsed.json else report.Output()
    found, read = _evaluated(from_arguments(Source, parsed), from_arguments(Rows, parsed), places, console)
    rows = [{"adapter": place} | _table(result) for place, result in zip(places, found, strict=True)]
    table: dict[str, Any] = _table(found[0]) if len(rows) == 1 else {"results": rows}
    table["examples"] = {
        "read": read.examples,
        "cut": read.cut,
        "split": read.split,
        "left_out": sum(read.left_out.values()),
        "reasons": read.left_out,
    }
    if parsed.json:
        print_out(json.dumps(table, indent=2))
    else:
        show(console, rows)
        report.remarks(console, [*weights(parsed.data), *lengths(read, parsed.sequence_length)])
    return table


def weights(data: str | list[str]) -> list[str]:
    """That the weights of files, which say how a run draws them, are not used here."""
    from entrenar.data import sources_of

    if all(source.weight is None for source in sources_of(data)):
        return []
    return [
        "The weights of the files are not used: every token of all of them counts alike, as in a run's held-out loss."
    ]


def lengths(read: SideReport, length: int) -> list[str]:
    """What is to be said of examples that were not evaluated as they are."""
    of = f"of {read.examples:,} examples"
    said = [
        f"{read.cut:,} {of} are longer than a row of {length:,} tokens and were cut: what is behind is not counted."
    ]
    said = said if read.cut else []
    said += [f"{read.split:,} {of} are longer than a row of {length:,} tokens and were split."] if read.split else []
    return said + [f"{count:,} {of} were left out: {reason}." for reason, count in read.left_out.items()]


def _evaluated(
    source: Source, rows: Rows, places: Sequence[str | None], console: Console
) -> tuple[list[Evaluation], SideReport]:
    """The evaluation of the base with each adapter, and what became of the examples; the base is read once, after
    everything else was checked."""
    from entrenar.train.evaluate import evaluate
    from entrenar.train.loading import Base, check_fits, evaluation_rows

    checkpoint = source.open()
    for place in places:
        if place is not None:
            check_fits(checkpoint, place)
    batches, read = evaluation_rows(rows, checkpoint)
    with source.computing():
        with console.status("reading the model"):
            base = Base(checkpoint, source.storage(checkpoint))
        report.remarks(console, checkpoint.remarks)
        found = [evaluate(base.model(place), report.track(console, batches, place or "base")) for place in places]
    return found, read


def _table(result: Evaluation) -> dict[str, Any]:
    finite = math.isfinite(result.perplexity)
    return {"loss": result.loss, "perplexity": result.perplexity if finite else None, "tokens": result.tokens}


def show(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """A row for each, with its change against the first where there are several."""
    table = Table(title=f"{rows[0]['tokens']:,} tokens", title_justify="left")
    table.add_column("adapter", overflow="fold")
    for heading in ("loss", "perplexity", *(["change"] if len(rows) > 1 else [])):
        table.add_column(heading, justify="right")
    for number, row in enumerate(rows):
        perplexity = "over 1e304" if row["perplexity"] is None else f"{row['perplexity']:.3f}"
        change = [""] if not number else [f"{100 * (row['loss'] / rows[0]['loss'] - 1):+.1f} %"]
        name = "none" if row["adapter"] is None else escape(printable(row["adapter"]))
        table.add_row(name, f"{row['loss']:.4f}", perplexity, *(change if len(rows) > 1 else []))
    console.print(table)
    few = report.uncertainty(rows[0]["tokens"], held_out=False)
    report.remarks(console, [few] if few else [])
