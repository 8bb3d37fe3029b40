"""What a run shows and records: the table at its start, the progress bar, metrics.csv, the result."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from entrenar.config import STDOUT, named_stdout
from entrenar.errors import safe
from entrenar.io.atomic import atomic_file
from entrenar.observe.energy import Energy

if TYPE_CHECKING:
    from entrenar.train.evaluate import Evaluation
    from entrenar.train.step import StepReport

T = TypeVar("T")
FEW_TOKENS = 400  # of a held-out set, below which its loss is said to say little
MANY_TOKENS = 1_000_000  # and from which on more of them say no more
PLAIN_EVERY = 5  # steps between lines where the output is no terminal
COLUMNS = ("step", "loss", "learning_rate", "grad_norm", "tokens", "trained_tokens", "seconds", "held_out_loss")


class Output(Console):
    """Standard output, which may be closed while the run goes on: rich would end the program without a word."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError

    def __exit__(self, *raised: Any) -> None:  # where rich writes
        with named_stdout():
            super().__exit__(*raised)


def lost(error: OSError) -> str:
    """What became of standard output."""
    if isinstance(error, BrokenPipeError):
        return f"{STDOUT} was closed"
    return f"{STDOUT} cannot be written ({error.strerror or error})"


def summary(console: Console, title: str, rows: dict[str, str]) -> None:
    """A two-column table."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


def remarks(console: Console, sentences: Iterable[str]) -> None:
    """Plain lines: what a user must know of the input."""
    for sentence in sentences:
        console.print(escape(safe(sentence).strip()), soft_wrap=True)


def wide(console: Console, table: Table, columns: int) -> None:
    """A table of at least `columns`, whole: a narrower output wraps its lines."""
    text = io.StringIO()
    Console(file=text, width=max(columns, console.width)).print(table)
    lines = (line.rstrip() for line in text.getvalue().splitlines())
    console.print("\n".join(lines), soft_wrap=True, markup=False, highlight=False)


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / 2**30:.2f} GiB"


def size(count: int) -> str:
    """Bytes in the unit that they are read best in."""
    for unit, bytes_ in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= bytes_:
            return f"{count / bytes_:.2f} {unit}"
    return f"{count} bytes"


def duration(seconds: float) -> str:
    """Seconds as they are read best: seconds up to an hour, hours up to four days, then days, up to a century."""
    if seconds < 3600:
        return f"{seconds:4.0f} s"
    if seconds < 96 * 3600:
        return f"{seconds / 3600:.1f} h"
    days = seconds / 86400
    return f"{days:.0f} days" if days < 36500 else "over 100 years"


class TimeLeft(TimeRemainingColumn):
    """The time left, which rich cannot hold beyond a million years."""

    def render(self, task: Task) -> Text:
        remaining = task.time_remaining
        if remaining is not None and remaining >= 96 * 3600:
            return Text(duration(remaining), style="progress.remaining")
        return super().render(task)


class StepDisplay:
    """A progress bar with loss, tokens/s and time left; lines every few steps where the output is no terminal.

    Where `energy` can be read, also what a step takes and what is left, from the third step on.
    """

    def __init__(self, console: Console, progress: Progress, task: TaskID, total: int, energy: Energy) -> None:
        self.console, self.progress, self.task, self.total, self.energy = console, progress, task, total, energy
        self.tokens, self.seconds, self.shown = 0, 0.0, 0

    def __call__(self, report: StepReport) -> None:
        self.tokens += report.tokens
        self.seconds += report.seconds
        rate = self.tokens / self.seconds
        text = f"loss {report.loss:.4f}  {rate:6.1f} tokens/s"
        self.shown += 1
        joules = self.energy.joules()
        if joules is not None and self.shown >= 3:
            each = joules / self.shown
            text += f"  {each:.1f} J a step, {each * (self.total - report.step) / 3600:.1f} Wh left"
        self.progress.update(self.task, completed=report.step, description=text)
        if not self.console.is_terminal and (report.step % PLAIN_EVERY == 0 or report.step in (1, 3, self.total)):
            left = duration((self.total - report.step) * report.tokens / rate)
            self.console.print(f"step {report.step}/{self.total}  {text}  {left} left")
        if report.held_out is not None:
            self.console.print(f"step {report.step}: held-out loss {report.held_out.loss:.4f}")


def track(console: Console, items: Sequence[T], title: str) -> Iterable[T]:
    """The items, with a progress bar while they are worked on."""
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        yield from progress.track(items, description=title)


@contextmanager
def steps(console: Console, total: int, done: int, energy: Energy | None = None) -> Iterator[StepDisplay]:
    """The display of the training steps; `energy` is this machine's unless it is given."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeLeft())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=total, completed=done)
        yield StepDisplay(console, progress, task, total, energy or Energy())


def write_metrics(path: Path, reports: Sequence[StepReport]) -> None:
    """One line a step; losses and rates with all their digits."""
    with atomic_file(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for r in reports:
            held_out = repr(r.held_out.loss) if r.held_out else ""
            writer.writerow(
                [
                    *(r.step, repr(r.loss), repr(r.learning_rate), repr(r.grad_norm), r.tokens, r.trained_tokens),
                    *(f"{r.seconds:.4f}", held_out),
                ]
            )


def write_json_lines(path: Path, reports: Sequence[StepReport]) -> None:
    """An object a step: what metrics.csv has, with the seconds of the phases and what the machine gave."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for report in reports:
            file.write(json.dumps({key: value for key, value in asdict(report).items() if value not in (None, {})}))
            file.write("\n")


def uncertainty(tokens: int, *, held_out: bool = True) -> str | None:
    """The sentence for a `held_out` (or any other) set of so few tokens that its loss says little, else None.

    The losses of single tokens scatter about as widely as their mean is large (their distribution is close to an
    exponential one), so the mean of n tokens is known to about 1 / sqrt(n) of itself: 5 % at 400.
    """
    if tokens >= FEW_TOKENS:
        return None
    what, more = ("The held-out set", "hold out") if held_out else ("What is evaluated", "evaluate on")
    where = " (data.held_out_fraction, or a larger file of data.eval_path)" if held_out else ""
    return (
        f"{what} has only {tokens} tokens: its loss is known to about {100 / max(tokens, 1) ** 0.5:.0f} % "
        f"(1 / sqrt(tokens)), so that a change says little; {more} at least {FEW_TOKENS}{where}."
    )


def held_out_size(tokens: int) -> str | None:
    """The sentence for a held-out set of too few tokens (`uncertainty`) or of more than a loss needs, else None."""
    if tokens <= MANY_TOKENS:
        return uncertainty(tokens)
    return (
        f"The held-out set has {tokens:,} tokens that count in its loss, before the first step and after the last: "
        f"{MANY_TOKENS:,} know a loss to 0.1 %, and a smaller data.held_out_fraction (or file of data.eval_path) takes "
        "less time."
    )


def comparison(
    console: Console, before: Evaluation | None, after: Evaluation | None, *, of_tokens: bool = True
) -> None:
    """Held-out loss before and after; with the perplexity where the loss is `of_tokens`."""
    if before is None or after is None:
        console.print("Nothing was held out (data.held_out_fraction is 0), so there is no loss before and after.")
        return
    table = Table(title=f"Held-out ({before.tokens} tokens)", title_justify="left")
    for heading in ("", "before", "after", "change"):
        table.add_column(heading, justify="right")
    change = (after.loss / before.loss - 1) * 100
    table.add_row("loss", f"{before.loss:.4f}", f"{after.loss:.4f}", f"{change:+.1f} %")
    if of_tokens:
        change = (after.perplexity / before.perplexity - 1) * 100
        table.add_row("perplexity", f"{before.perplexity:.3f}", f"{after.perplexity:.3f}", f"{change:+.1f} %")
    console.print(table)
