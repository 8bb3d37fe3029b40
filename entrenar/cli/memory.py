"""The verb `memory`: what a run would need, by part, against what is available, and what would make it fit."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from entrenar.cli.finetune import asked_for
from entrenar.cli.flags import Parser
from entrenar.config import print_out
from entrenar.errors import MemoryBudgetError, printable
from entrenar.train import report

if TYPE_CHECKING:
    from entrenar.train.memory import Remedy
    from entrenar.train.memory_plan import Planned

DESCRIPTION = """Say what memory a run would need, by part, and what would make it fit; nothing is trained.

    entrenar memory --model DIRECTORY_OR_GGUF --sequence-length 2048
    entrenar memory --model base.gguf --adapter lora --rank 8 --gradient-checkpointing off --json
    entrenar memory --model llama2/7b --adapter none

It takes the flags of `entrenar finetune` that change the memory. --model may also be the TOML file of a shape, or one
that is shipped (llama2/tiny, llama2/7b): with --adapter none that is training from scratch. Where the
run does not fit the status is 1, and the error stream has the sentence of such a run.
"""
# The keys that change what a run holds, by section.
KEYS = {
    "training": ("batch_size", "gradient_accumulation", "sequence_length", "optimizer", "gradient_checkpointing"),
    "lr_schedule": ("name",),
    "data": ("path", "eval_path", "max_examples"),
    "preference": ("method",),
    "observe": ("verify_every",),
}


def main(
    arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None
) -> dict[str, Any]:
    """Plan and print; what --json prints. EntrenarError for a wrong input, MemoryBudgetError after all is printed where
    the run does not fit, SystemExit for a wrong flag."""
    given = sys.argv[1:] if arguments is None else arguments
    asked = asked_for(given, description, prog, only=KEYS, add=_add_json)
    from entrenar.train.memory_plan import planned

    found = planned(asked.base.path, asked.config, dtype=asked.base.dtype, quantize=asked.base.quantize)
    table = found.table()
    for row, remedy in zip(table["remedies"], found.remedies, strict=True):
        row["flags"] = flags_of(remedy)
    if asked.parsed.json:
        print_out(json.dumps(table, indent=2))
    else:
        show(report.Output(), found)
    if found.shortage is not None:
        raise MemoryBudgetError(found.shortage)
    return table


def _add_json(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON (default: false)")


def flags_of(remedy: Remedy) -> str:
    """The settings as flags of the command line."""
    words = []
    for key, value in remedy.settings.items():
        flag = "--" + key.split(".")[1].replace("_", "-")
        words.append(flag if value == "true" else f"{flag} {value}")
    return " ".join(words)


def show(console: Console, found: Planned) -> None:
    """The parts, the sum against what is available, and what would make it fit."""
    console.print(escape(printable(found.model)), highlight=False, soft_wrap=True)
    if found.assumed:
        said = f"No file has these weights; taken as stored in {found.assumed}, as models are published (see --dtype)."
        console.print(said, soft_wrap=True)
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("parameters", f"{found.parameters:,}")
    table.add_row("trained", f"{found.trained:,}")
    table.add_row("layers computed again", f"{found.recomputed} of {found.layers}")
    for name, size in found.needed.items.items():
        table.add_row(name, report.gib(size))
    table.add_row("together", report.gib(found.needed.total))
    table.add_row("available", report.gib(found.available))
    console.print(table)
    if found.fits:
        console.print("It fits.")
        return
    console.print("It does not fit." + ("" if found.remedies else " No setting makes it fit; use a smaller model."))
    for remedy in found.remedies:
        console.print(f"It would fit, in {report.gib(remedy.total)}, with {flags_of(remedy)}", soft_wrap=True)
