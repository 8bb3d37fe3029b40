"""The profile that [observe] asks for: counted while the run lasts, shown and written at its end and in between."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from threading import get_ident

from rich.console import Console
from rich.table import Table

from entrenar._kernels import profile as counters
from entrenar.autograd import empty_cache
from entrenar.errors import ConfigError
from entrenar.io.atomic import atomic_file, real_file
from entrenar.observe.bottlenecks import bottlenecks
from entrenar.observe.events import Span, Subscriber, subscribe, unsubscribe
from entrenar.observe.peak import Peak, machine_peak
from entrenar.observe.pprof import collapsed, pprof
from entrenar.observe.profile import PHASES, Counts, Profile
from entrenar.train.callbacks import Callback
from entrenar.train.config import Observe
from entrenar.train.folder import PROFILE, PROFILES
from entrenar.train.report import remarks, wide
from entrenar.train.step import StepReport
from entrenar.train.trainer import Trainer

ROWS = 16  # of the table that is shown; the file has all
WIDTH = 104  # columns that the table has at least: a narrower terminal wraps its lines
THREAD_SECONDS = {  # of Profile.thread_seconds, as they are shown
    "kernels": "in kernels",
    "interpreter": "in the interpreter",
    "waiting": "waiting without a CPU",
    "single_threaded": "of threads that have nothing to do while one is outside of kernels",
}


class Profiler(Callback):
    """Counts kernels while the run lasts; rank 0 alone. ConfigError where the file's place cannot be written.

    What fails later is a sentence on `console`: the run goes on.
    """

    def __init__(self, wanted: Observe, directory: Path, console: Console) -> None:
        self.wanted, self.directory, self.console = wanted, directory, console
        self.out = None if wanted.profile_out is None else Path(wanted.profile_out)
        if self.out is not None and not real_file(self.out).parent.is_dir():
            raise ConfigError(f"observe.profile_out: the folder of {self.out} is not there; make it.")

    def around_run(self, trainer: Trainer) -> AbstractContextManager[object]:
        """Count from here to the end of the run."""
        return self._around(trainer)

    @contextmanager
    def _around(self, trainer: Trainer) -> Iterator[None]:
        if trainer.communicator.rank:
            yield
            return
        self._peak, self._first = machine_peak(), trainer.step + 1
        phases, counted = Phases(), counters.enabled()
        subscribe(phases)
        counters.enable()
        counters.watch(True)
        self._start = self._last = Counts.now()
        self._last_step = trainer.step
        try:
            yield
        finally:
            end = Counts.now()
            counters.watch(False)
            if not counted:
                counters.disable()
            unsubscribe(phases)
            self._finish(end, trainer.step)

    def on_step(self, trainer: Trainer, report: StepReport) -> None:
        """Write the profile of the last few steps, where it is due."""
        every = self.wanted.profile_every
        if every and report.step % every == 0 and not trainer.communicator.rank:
            self._write_last(Counts.now(), report.step)

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """Write the profile of the run so far."""
        if not trainer.communicator.rank:
            self._write_record(Profile.between(self._start, Counts.now(), self._peak, (self._first, trainer.step)))

    # ------------------------------------------------------------------ what is written
    def _finish(self, end: Counts, step: int) -> None:
        """Write and show the whole run, against the larger of the peaks before and after it."""
        empty_cache()  # of the steps that are over: measuring takes memory of its own
        peak = machine_peak(self._peak.threads, again=True)
        whole = Profile.between(self._start, end, peak, (self._first, step))
        if self.wanted.profile_every and step > self._last_step:
            self._write_last(end, step)
        self._write_record(whole)
        if self.out is not None:
            self._write(self.out, pprof(whole) if self.out.name.endswith(".gz") else collapsed(whole).encode())
        if self.wanted.profile:
            with suppress(OSError):  # standard output was closed
                show(self.console, whole)

    def _write_last(self, now: Counts, step: int) -> None:
        """The steps since the last such file."""
        steps = (self._last_step + 1, step)
        part = Profile.between(self._last, now, self._peak, steps)
        self._last, self._last_step = now, step
        self._write(self.directory / PROFILES / f"steps-{steps[0]:06}-{step:06}.pb.gz", pprof(part))

    def _write_record(self, profile: Profile) -> None:
        table = profile.to_json(bottlenecks(profile))
        self._write(self.directory / PROFILE, (json.dumps(table, indent=1) + "\n").encode())

    def _write(self, path: Path, content: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            with suppress(OSError):
                remarks(self.console, [f"The profile was not written: {error}"])


class Phases(Subscriber):
    """Tells the counters the phase that the thread which made this is in."""

    def __init__(self) -> None:
        self._thread = get_ident()
        self._before: list[str] = []

    def on_span_start(self, span: Span) -> None:
        """A phase begins, perhaps in another one."""
        if span.name in PHASES and span.thread == self._thread:
            self._before.append(counters.set_phase(span.name))

    def on_span_end(self, span: Span) -> None:
        """The phase around it goes on."""
        if span.name in PHASES and span.thread == self._thread and self._before:
            counters.set_phase(self._before.pop())


# ---------------------------------------------------------------------- what is shown
def show(console: Console, profile: Profile) -> None:
    """Print the table of kernels, the sum of the thread-seconds, and the bottlenecks."""
    table = Table(title=f"Kernels, steps {profile.steps[0]} to {profile.steps[1]}", title_justify="left", box=None)
    table.add_column("kernel", no_wrap=True)
    table.add_column("shape", no_wrap=True, overflow="ellipsis")
    for name in ("calls", "seconds", "GFLOP/s", "GB/s", "% of peak"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = profile.kernels()
    for row in rows[:ROWS]:
        figures = (f"{row.gflops:.1f}", f"{row.gbs:.1f}", f"{100 * row.share(profile.peak):.0f}")
        table.add_row(row.kernel, row.shape, str(row.calls), f"{row.seconds:.3f}", *figures)
    if rows[ROWS:]:
        rest = rows[ROWS:]
        calls, seconds = sum(row.calls for row in rest), sum(row.seconds for row in rest)
        table.add_row(f"{len(rest)} more", f"in {PROFILE}", str(calls), f"{seconds:.3f}", "", "", "")
    wide(console, table, WIDTH)
    remarks(console, lines(profile))


def lines(profile: Profile) -> Iterator[str]:
    """The peak, what the thread-seconds were, and the bottlenecks."""
    yield f"Peak of this machine, measured: {peak_line(profile.peak)}"
    whole = profile.wall_seconds * profile.threads
    if whole:
        parts = profile.thread_seconds()
        said = ", ".join(f"{100 * parts[name] / whole:.1f} % {text}" for name, text in THREAD_SECONDS.items())
        yield (
            f"{profile.wall_seconds:.1f} s on {profile.threads} threads: {said}; accounted for: "
            f"{100 * sum(parts.values()) / whole:.1f} %."
        )
    for number, sentence in enumerate(bottlenecks(profile), 1):
        yield f"{number}. {sentence}"


def peak_line(peak: Peak) -> str:
    """The figures of a peak, those that the tier has."""
    rates = [f"{peak.fp32:.0f} GFLOP/s in fp32"]
    rates += [f"{rate:.0f} in {name}" for name, rate in (("int16", peak.int16), ("int8", peak.int8)) if rate]
    return f"{', '.join(rates)}; {peak.read:.1f} GB/s read ({peak.threads} threads, {peak.tier})."
