"""The verb `compare`: two runs against a tolerance, or a history of benchmarks."""

from __future__ import annotations

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from entrenar.config import ArgumentParser, add_arguments, from_arguments, print_out, shown, text_argument
from entrenar.observe.tolerance import Tolerance
from entrenar.train import report

DESCRIPTION = """Say how run B differs from run A: configuration, bits, losses, speed, phases, kernels.

    entrenar compare outputs/a outputs/b
    entrenar compare --loss-tolerance 0 --speed-tolerance 0.1 outputs/a outputs/b
    entrenar compare --history benchmarks/history.jsonl

A and B are output folders of runs. Exit status: 0 within the tolerance, 3 beyond it, 1 where a folder is no run or a
file is damaged, 2 for a wrong flag. Speed is beyond where a step is slower by more than the tolerance and the interval
of the ratio (95 %) lies above 1.

--history looks for changes in the results that make bench-history keeps; 3 where something became slower.
"""
BEYOND = 3  # the exit status
LISTED = 12  # kernels and shapes that are shown


def main(
    arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None
) -> dict[str, Any]:
    """Compare and print; what --json prints.

    FormatError where a folder is no run, SystemExit with BEYOND beyond the tolerance and for a wrong flag.
    """
    parser = ArgumentParser(
        prog=prog, description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", metavar="RUN", nargs="*", type=text_argument, help="output folders of two runs")
    add_arguments(parser, Tolerance)
    parser.add_argument("--json", action="store_true", help="print JSON (default: false)")
    parser.add_argument("--history", metavar="FILE", type=text_argument, help="results to look through (default: none)")
    parsed = parser.parse_args(arguments)
    tolerance = from_arguments(Tolerance, parsed)
    if parsed.history is not None:
        if parsed.runs or tolerance != Tolerance():
            parser.error("--history stands alone: neither runs nor tolerances go with it.")
        from entrenar.observe.history import find, read_history

        return _end(parsed.json, find(read_history(Path(parsed.history))), show_history, "slower")
    if len(parsed.runs) != 2:
        parser.error(f"{len(parsed.runs)} runs are given; expected two output folders.")
    from entrenar.observe.compare import compare
    from entrenar.train.recorded import read_run

    first, second = (read_run(Path(name)) for name in parsed.runs)
    return _end(parsed.json, compare(first, second, tolerance), show, "beyond")


def _end(as_json: bool, table: dict[str, Any], show: Callable[[Console, dict[str, Any]], None], wrong: str) -> Any:
    """Print the table and return it; SystemExit with BEYOND where it has something under the key `wrong`."""
    if as_json:
        print_out(json.dumps(table, indent=2, ensure_ascii=False))
    else:
        show(report.Output(), table)
    if table[wrong]:
        raise SystemExit(BEYOND)
    return table


def show(console: Console, table: dict[str, Any]) -> None:
    """The differences, for a person; the verdict last."""
    console.print(f"A {table['runs'][0]}, B {table['runs'][1]}", markup=False, highlight=False, soft_wrap=True)
    rows = [[row["key"], shown(row["first"]), shown(row["second"])] for row in table["configuration"]]
    _print(console, "Configuration" if rows else "Configuration: no difference", ("key", "A", "B"), rows, texts=3)
    _print(console, "Bits", ("what", "same", "A", "B"), _bit_rows(table), texts=4)
    _print(console, "Losses and speed", ("what", "A", "B", "B against A"), _figure_rows(table))
    if table["phases"]:
        rows = [[row["phase"], *_ratio_cells(row)] for row in table["phases"]]
        _print(console, "Phases, median seconds", ("phase", "A", "B", "B / A"), rows)
    if table["kernels"] is None:
        console.print("Kernels: not both runs were profiled (--profile).", soft_wrap=True)
    else:
        rows = [[f"{row['kernel']} {row['shape']}", *_ratio_cells(row)] for row in table["kernels"]]
        more = f", {len(rows) - LISTED} more in --json" if len(rows) > LISTED else ""
        title = f"Kernels, seconds a step; what differs most{more}"
        _print(console, title, ("kernel", "A", "B", "B / A"), rows[:LISTED])
    for sentence in table["undecided"]:
        console.print(f"Not judged: {sentence}.", markup=False, highlight=False, soft_wrap=True)
    tolerance = table["tolerance"]
    stated = f"{100 * tolerance['loss']:g} % of loss, {100 * tolerance['speed']:g} % of speed"
    said = f"Beyond the tolerance ({stated}): {'; '.join(table['beyond'])}." if table["beyond"] else ""
    console.print(said or f"Within the tolerance ({stated}).", markup=False, highlight=False, soft_wrap=True)


def _print(
    console: Console, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1
) -> None:
    """A table whose first `texts` columns are words, or its title where it has no rows."""
    if not rows:
        console.print(title, soft_wrap=True)
        return
    printed = Table(title=title, title_justify="left")
    for place, heading in enumerate(headings):
        printed.add_column(heading, justify="left" if place < texts else "right", overflow="fold")
    for row in rows:
        printed.add_row(*map(escape, row))
    console.print(printed)


def _bit_rows(table: dict[str, Any]) -> list[list[str]]:
    bits, count = table["bits"], table["common_steps"]
    if bits["same"]:
        rows = [[f"losses, gradient norms: {count} steps", "yes", "", ""]]
    elif count:
        name = f"from step {bits['step']} on: {bits['quantity'].replace('_', ' ')}"
        rows = [[name, "no", repr(bits["first"]), repr(bits["second"])]]
    else:
        rows = [["no step in common", "", "", ""]]
    for row in table["files"]:
        sums = [row[side][:12] if row[side] else "absent" for side in ("first", "second")]
        rows.append([row["file"], "yes" if row["same"] else "no", *sums])
    return rows


def _figure_rows(table: dict[str, Any]) -> list[list[str]]:
    rows = []
    if table["loss"]:
        first, last = table["loss"]["steps"]
        steps = f"step {last}" if first == last else f"steps {first} to {last}"
        rows.append([f"training loss, {steps}", *_loss_cells(table["loss"])])
    rows += [[f"held-out loss {row['when']}", *_loss_cells(row)] for row in table["held_out"]]
    speed = table["speed"]
    if speed:
        sides = [speed["first"], speed["second"]]
        times = _between(speed["interval"])
        how = "paired" if speed["paired"] else "per token"
        seconds = [f"{side['seconds']:.4g}{_between(side['interval'])}" for side in sides]
        rows.append([f"median step, s ({how})", *seconds, f"{speed['ratio']:.3f} x{times}"])
        rates = [side["tokens_per_second"] for side in sides]
        rows.append(["tokens per second", *(f"{rate:.4g}" for rate in rates), f"{rates[1] / rates[0]:.3f} x"])
    return rows


def _between(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" [{interval[0]:.4g}, {interval[1]:.4g}]"


def _loss_cells(row: dict[str, Any]) -> list[str]:
    relative = "other examples" if row["relative"] is None else f"{100 * row['relative']:+.3g} %"
    return [f"{row['first']:.6g}", f"{row['second']:.6g}", relative]


def _ratio_cells(row: dict[str, Any]) -> list[str]:
    cells = ["" if row[side] is None else f"{row[side]:.4g}" for side in ("first", "second")]
    return [*cells, "" if row["ratio"] is None else f"{row['ratio']:.3f}"]


def show_history(console: Console, table: dict[str, Any]) -> None:
    """The changes of a history, what became slower first; the verdict last."""
    from entrenar.observe.changes import FEWEST

    rows = []
    for row in table["changes"]:
        (low, high), scale, unit = (
            row["interval"],
            100 if row["relative"] else 1,
            "%" if row["relative"] else row["unit"],
        )
        size = f"{scale * row['size']:+.3g} {unit} [{scale * low:+.3g}, {scale * high:+.3g}]"
        places = list(dict.fromkeys(row["places"]))
        commit = row["commit"] + (f" ({' to '.join(places)})" if len(places) > 1 else "")
        what = "slower, or more" if row["slower"] else "faster, or less"
        runs = f"{row['runs'][0]} + {row['runs'][1]}"
        rows.append([f"{row['entry']}: {row['case']}", what, commit, size, f"{100 * row['confidence']:.2f} %", runs])
    judged, level = table["judged"], 100 * table["level"]
    headings = ("entry: case", "change", "commit (may be)", "size [95 %]", "confidence", "runs")
    title = f"Changes; {judged} of {table['series']} series judged, a false alarm in {level:.2g} % of those without any"
    _print(console, title if rows else f"{title}: none", headings, rows, texts=3)
    if judged < table["series"]:
        rest = table["series"] - judged
        console.print(
            f"Not judged: {rest} series without {FEWEST} runs of other commits on both sides.", soft_wrap=True
        )
    names = ", ".join(f"{row['entry']}: {row['case']} at {row['commit']}" for row in table["slower"])
    said = f"Became slower, or takes more: {names}." if names else "Nothing became slower."
    console.print(said, markup=False, highlight=False, soft_wrap=True)
