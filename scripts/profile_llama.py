"""Which system calls a training run makes, how long they take and why: `python scripts/profile_llama.py [--seconds 6]`.

Starts the QLoRA example, attaches strace once it trains, for a bounded window, then perf trace where the system allows
it (who takes page faults), and ends the run. Prints a table and the top three bottlenecks. A missing strace, or one
that may not attach, is a sentence and status 1.
"""

from __future__ import annotations

import argparse
import mmap
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from entrenar.errors import EntrenarError
from entrenar.observe.syscalls import Faults, Line, Timeline, bottlenecks, parse, parse_faults, table
from entrenar.train.report import wide

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "llama2_finetune_qlora.py"
STEPS, CHECKPOINT_EVERY = 1000, 2  # more steps than a window has, and a checkpoint in it
PATIENCE = 900  # seconds until the first step: a model may be fetched first
ROWS = 20
PROBE = 16 << 20  # bytes of fresh memory whose faults are timed
SYSTEM = {"/proc": "what the machine says", "/sys": "what the machine says"}


class Failed(EntrenarError):
    """The profile cannot be made; the message says why and what to do."""


def options(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The script's own options, and those of the example behind `--`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6, help="length of the window (default: 6)")
    parser.add_argument("example", nargs="*", help="flags of the example, behind --")
    parsed = parser.parse_args(arguments)
    if not parsed.seconds > 0:
        parser.error(f"--seconds is {parsed.seconds}, expected a length above 0")
    return parsed, parsed.example


@contextmanager
def training(folder: Path, flags: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The example, which has done its first step; it is ended with the block."""
    command = [sys.executable, str(EXAMPLE), "--output", str(folder / "run"), "--steps", str(STEPS)]
    command += ["--checkpoint-every", str(CHECKPOINT_EVERY), "--trace-chrome", str(folder / "trace.json"), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1)
    said: list[str] = []
    started = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line.startswith("step "):
                started.set()
        started.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        started.wait(PATIENCE)
        if not any(line.startswith("step ") for line in said):
            last = next((line.strip() for line in reversed(said) if line.strip()), "nothing")
            raise Failed(f"the example did not begin to train; the last that it said is: {last}")
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # it ends its step, and closes its trace
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        reader.join(5)


def attached(command: list[str], seconds: float, run: subprocess.Popen[str]) -> str:
    """Run a tracer for a while; what it said on standard error. Failed where it could not attach, or the run ended."""
    tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and tracer.poll() is None and run.poll() is None:
        time.sleep(0.05)
    early = tracer.poll() is not None and run.poll() is None
    if tracer.poll() is None:
        tracer.send_signal(signal.SIGINT)
    said = tracer.communicate(timeout=60)[1]
    if early:
        reason = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
        raise Failed(
            f"{command[0]} could not trace the run ({reason}); in a container, start it with --cap-add=SYS_PTRACE, and "
            "see /proc/sys/kernel/yama/ptrace_scope."
        )
    return said


def faults_of(process: int) -> tuple[int, int]:
    """Minor and major page faults of a process so far (proc(5): fields 10 and 12 of stat)."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[7]), int(fields[9])


def seconds_of_a_fault() -> float:
    """Seconds that a page of fresh memory takes to be touched, as measured here."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with mmap.mmap(-1, PROBE) as memory:
        started = time.perf_counter()
        for at in range(0, PROBE, mmap.PAGESIZE):
            memory[at] = 1
        touched = time.perf_counter() - started
        started = time.perf_counter()
        for at in range(0, PROBE, mmap.PAGESIZE):  # the loop alone
            memory[at] = 1
        loop = time.perf_counter() - started
    count = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return max(0.0, touched - loop) / max(1, count)


def perf_faults(run: subprocess.Popen[str], seconds: float, folder: Path) -> tuple[dict[str, int], str]:
    """Who took page faults, as perf trace saw it, and where it is not to be had, why."""
    if shutil.which("perf") is None:
        return {}, "perf is not installed"
    target = folder / "faults.txt"
    try:
        attached(["perf", "trace", "-F", "all", "-o", str(target), "-p", str(run.pid)], seconds, run)
        return parse_faults(target.read_text(errors="replace").splitlines()), ""
    except (Failed, OSError) as error:
        return {}, str(error)


def profile(seconds: float, flags: list[str], console: Console) -> None:
    """Trace a run and print what it did."""
    if shutil.which("strace") is None:
        raise Failed("strace is missing; install it (apt-get install strace).")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trace = folder / "strace.txt"
        with training(folder, flags) as run:
            before, started = faults_of(run.pid), time.monotonic()
            flags = ["-f", "-ttt", "-T", "-yy", "-s", "0", "-o", str(trace), "-p", str(run.pid)]
            attached(["strace", *flags], seconds, run)
            if run.poll() is not None:
                raise Failed("the run ended in the window; give it more steps, or a shorter one with --seconds.")
            after, window = faults_of(run.pid), time.monotonic() - started
            places, why = perf_faults(run, seconds / 2, folder)
        counts = (after[0] - before[0], after[1] - before[1])
        calls = parse(trace.read_text(errors="replace").splitlines())
        timeline = Timeline.read(folder / "trace.json")
        causes = SYSTEM | {str(folder / "run"): "the run's records", str(folder / "run" / "checkpoint"): "checkpoint"}
        show(console, table(calls, causes, timeline), len(calls), window)
        found = Faults(*counts, seconds_of_a_fault(), places)
        for number, sentence in enumerate(bottlenecks(calls, causes, timeline, found, run.pid, window), 1):
            console.print(f"{number}. {sentence}", soft_wrap=True, markup=False, highlight=False)
        if why:
            console.print(
                f"Who took the page faults is not known: {why}.", soft_wrap=True, markup=False, highlight=False
            )


def show(console: Console, lines: list[Line], calls: int, window: float) -> None:
    """Print the table of calls."""
    title = f"System calls of a training run: {calls:,} in a window of {window:.1f} s, traced (which makes each slower)"
    grid = Table(title=title, title_justify="left", box=None)
    for name in ("syscall", "calls", "failed", "seconds", "for", "mostly in"):
        grid.add_column(name, justify="right" if name in ("calls", "failed", "seconds") else "left", no_wrap=True)
    for line in lines[:ROWS]:
        figures = (str(line.calls), str(line.errors), f"{line.seconds:.4f}")
        grid.add_row(line.name, *figures, line.cause, line.phase)
    if lines[ROWS:]:
        rest = lines[ROWS:]
        figures = (str(sum(line.calls for line in rest)), str(sum(line.errors for line in rest)))
        grid.add_row(f"{len(rest)} more", *figures, f"{sum(line.seconds for line in rest):.4f}", "", "")
    wide(console, grid, 132)


def main(arguments: list[str] | None = None) -> int:
    """Print the profile; 1, with a sentence, where it cannot be made."""
    parsed, flags = options(arguments)
    try:
        profile(parsed.seconds, flags, Console())
    except EntrenarError as error:
        print(f"profile-llama: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
