"""Plant faults in real training runs, and see whether --monitor finds each: its step, severity and cause.

Each fault is planted in a run of its own, a child process that trains a small model. Then runs without a fault count
false alarms. Exit status 1 where a fault is missed, or where there are more false alarms than one in a thousand steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from entrenar.data import DataLoader, Sample, evaluation_batches
from entrenar.errors import NumericsError
from entrenar.llama import LLaMAConfig, LLaMAModel
from entrenar.lora import LoRAConfig
from entrenar.observe.causes import MEGABYTE
from entrenar.observe.resources import Resources, difference
from entrenar.train.callbacks import Callback
from entrenar.train.config import Checkpointing, LRSchedule, Observe, TrainConfig, Training
from entrenar.train.observers import observers
from entrenar.train.trainer import Trainer

WHEN, AFTER = 120, 60  # the step of a fault, and the steps that follow
SECONDS = "seconds.json"  # of a run's steps
HELD = 6.0  # seconds that a fault of the machine lasts
LENGTH, BATCH = 128, 4
SHAPE = LLaMAConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=LENGTH,
)
SPIN = "while True: pass"
WRITE = """
import os, sys
with open(sys.argv[1], "wb") as file:
    for _ in range(int(sys.argv[2])):
        file.write(bytes(1 << 20))
    os.fsync(file.fileno())
"""
READ = """
import mmap, sys
with open(sys.argv[1], "rb") as file:
    memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
while True:
    for at in range(0, len(memory), mmap.PAGESIZE):
        memory[at]
"""
BURST, THRASHED, ROOM = 400, 512, 16  # MB written, MB of a file that is read again and again, MB of memory left for it
OTHERS, OTHERS_WRITE = 0.3, 10 * MEGABYTE  # CPUs, and bytes a second, of other programs: an alarm then is no false one
BY_OTHERS = {"slow_step", "busy_neighbour", "pressure", "disk", "steal", "throttled", "frequency", "thermal"}
TRIES = 3  # of a fault that is missed while others use the machine
ONE_IN = 1000  # steps a false alarm


class Impossible(Exception):
    """The fault cannot be planted on this machine; the message says why."""


# ---------------------------------------------------------------------- in the child: the faults
class Fault(Callback):
    """Something that goes wrong at step WHEN. Hooks are called before the monitor's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_phase(self, trainer: Trainer, phase: str) -> None:
        """Plant the fault in the forward of its step."""
        if phase == "forward" and trainer.step + 1 == WHEN:
            self.plant(trainer)

    def plant(self, trainer: Trainer) -> None:
        """What goes wrong, once."""

    def clean(self) -> None:
        """Undo what is left of it."""


class SlowStep(Fault):
    """A step of three times the usual seconds, two of which it sleeps."""

    def plant(self, trainer: Trainer) -> None:
        time.sleep(2 * float(np.median([report.seconds for report in trainer.reports])))


class BadGradient(Fault):
    """A gradient that is not a number."""

    def on_phase(self, trainer: Trainer, phase: str) -> None:
        if phase == "clip" and trainer.step + 1 == WHEN:
            trainer.parameters[0][1].grad.numpy()[...] = np.nan


class Leak(Fault):
    """5 MB a step that are never given back."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.kept: list[np.ndarray] = []

    def on_step(self, trainer: Trainer, report: Any) -> None:
        if trainer.step >= WHEN:
            self.kept.append(np.ones(5_000_000 // 8))


class WildUpdate(Fault):
    """An update that changes a layer by half of its weights."""

    def on_step(self, trainer: Trainer, report: Any) -> None:
        if trainer.step == WHEN:
            for name, tensor in trainer.parameters:
                if ".layers.2." in name:
                    tensor.numpy()[...] *= np.float32(1.5)


class DeadAdapter(Fault):
    """An adapter to which no gradient comes."""

    def on_step(self, trainer: Trainer, report: Any) -> None:
        next(tensor for name, tensor in trainer.parameters if ".lora_B" in name).numpy()[...] = 0


class OwnWrites(Fault):
    """A step that writes much and waits until it is on disk."""

    def plant(self, trainer: Trainer) -> None:
        block = os.urandom(1 << 20)
        with (self.folder / "burst").open("wb") as file:
            for _ in range(BURST):
                file.write(block)
            os.fsync(file.fileno())


class Held(Fault):
    """A fault of the machine that lasts HELD seconds, `begin` to `end`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.programs: list[subprocess.Popen[bytes]] = []
        self.over = threading.Timer(HELD, self.end)

    def begin(self) -> None:
        """What begins to go wrong."""

    def end(self) -> None:
        """It is over."""
        for program in self.programs:
            program.kill()
            program.wait()

    def plant(self, trainer: Trainer) -> None:
        self.begin()
        self.over.start()

    def clean(self) -> None:
        self.over.cancel()
        self.end()

    def run(self, program: str, *arguments: object) -> None:
        """Start a program of Python that disturbs."""
        self.programs.append(subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)]))


class Neighbours(Held):
    """Six programs that never wait."""

    def begin(self) -> None:
        for _ in range(6):
            self.run(SPIN)


class OthersWrite(Held):
    """Another program that writes much into the disk of the run."""

    def begin(self) -> None:
        self.run(WRITE, self.folder / "burst", BURST)


class Grouped(Held):
    """A fault by a cgroup of this process, of version 1 or 2."""

    controller = ""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        first = Path("/sys/fs/cgroup") / self.controller
        self.second = not first.exists()
        self.root = first.parent if self.second else first
        self.group = self.root / f"entrenar-fault-{os.getpid()}"
        self.home = self.root
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if controllers == self.controller or (self.second and number == "0"):
                self.home = self.root / path.lstrip("/")
        try:
            self.group.mkdir()
            self.prepare()
            self.move(self.group)
        except OSError as error:
            self.leave()
            raise Impossible(f"no cgroup with a {self.controller} controller can be made ({error})") from error

    def prepare(self) -> None:
        """Set what holds before the fault."""

    @staticmethod
    def move(group: Path) -> None:
        (group / "cgroup.procs").write_text(f"{os.getpid()}\n")

    def leave(self) -> None:
        """Go back to where this process was, and remove the group."""
        with suppress(OSError):
            self.move(self.home)
        for _ in range(20):
            with suppress(OSError):
                self.group.rmdir()
                return
            time.sleep(0.1)

    def clean(self) -> None:
        super().clean()
        self.leave()


class Quota(Grouped):
    """A CPU quota that is cut from what the run needs to a quarter of a CPU, and given back."""

    controller = "cpu"

    def quota(self, share: float) -> None:
        """Set the quota in CPUs."""
        name, value = (
            ("cpu.max", f"{int(1e5 * share)} 100000") if self.second else ("cpu.cfs_quota_us", int(1e5 * share))
        )
        (self.group / name).write_text(f"{value}\n")

    def prepare(self) -> None:
        self.quota(8)

    def begin(self) -> None:
        self.quota(0.25)

    def end(self) -> None:
        super().end()
        self.quota(8)


class Pressure(Grouped):
    """A memory limit a little above what the run has, in a group where a program reads a large file all the time."""

    controller = "memory"

    def limit(self, size: int) -> None:
        """Set the limit in bytes; -1 for none."""
        if self.second:
            (self.group / "memory.max").write_text("max\n" if size < 0 else f"{size}\n")
        else:
            (self.group / "memory.limit_in_bytes").write_text(f"{size}\n")

    def prepare(self) -> None:
        with (self.folder / "read").open("wb") as file:
            for _ in range(THRASHED):
                file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # who reads it next is charged for it

    def begin(self) -> None:
        for _ in range(2):
            self.run(READ, self.folder / "read")
        threading.Timer(0.5, self.cut).start()  # when they have started: their own memory is not to be short

    def cut(self) -> None:
        """Leave room for what is no file, and ROOM besides."""
        usage = int((self.group / ("memory.current" if self.second else "memory.usage_in_bytes")).read_text())
        self.limit(usage - self.cached() + (ROOM << 20))

    def cached(self) -> int:
        """Bytes of files in the group's memory."""
        text = (self.group / "memory.stat").read_text()
        name = "file" if self.second else "cache"
        return next(int(line.split()[1]) for line in text.splitlines() if line.split()[0] == name)

    def end(self) -> None:
        super().end()
        self.limit(-1)


@dataclass(frozen=True)
class Expected:
    """What the monitor must say: one of `kinds`, of `severity`, at steps WHEN + `early` to WHEN + `late`.

    One of the causes must hold all of `says`.
    """

    fault: type[Fault]
    kinds: tuple[str, ...]
    says: tuple[str, ...]
    early: int = 0
    late: int = 0
    severity: str = "high"
    adapter: bool = False


MACHINE = 45  # steps in which the monitor's thread, once a second, must have seen a fault of the machine
FAULTS = {
    "slow step": Expected(SlowStep, ("slow_step",), ("unknown cause", "the process waited")),
    "NaN gradient": Expected(BadGradient, ("nonfinite",), ("no spike came before",)),
    "own disk writes": Expected(OwnWrites, ("slow_step",), ("a burst of disk writes", "of it by this process")),
    "others' disk writes": Expected(OthersWrite, ("disk", "slow_step"), ("a burst of disk writes",), late=MACHINE),
    "leak of 5 MB a step": Expected(Leak, ("memory_leak",), ("a memory leak",), late=30),
    "busy neighbours": Expected(
        Neighbours, ("slow_step", "busy_neighbour"), ("a busy neighbour: other processes use",), late=MACHINE
    ),
    "quota cut": Expected(
        Quota, ("slow_step", "throttled"), ("throttled for ", "(cpu.max 25 %, 800 % before)"), late=MACHINE
    ),
    "memory pressure": Expected(Pressure, ("slow_step", "pressure"), ("memory pressure: ",), late=MACHINE),
    "wild update": Expected(WildUpdate, ("update_ratio",), ("an update this large",)),
    "dead adapter": Expected(DeadAdapter, ("dead_adapter",), ("no gradient",), -100, -100, "medium", adapter=True),
}


def sequences(seed: int) -> list[Sample]:
    """Sequences of a rule that a model can learn, of lengths that differ."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(256):
        size = int(rng.integers(LENGTH // 2, LENGTH + 1))
        tokens = (rng.integers(0, SHAPE.vocab_size) + rng.integers(1, 9) * np.arange(size)) % SHAPE.vocab_size
        found.append(Sample(tokens.astype(np.int32), np.ones(size, bool)))
    return found


def train(folder: Path, steps: int, seed: int, name: str | None, adapter: bool, interruptions: bool) -> None:
    """The child: a watched run of `steps` steps, with a fault where `name` says one.

    `interruptions` are evaluations and checkpoints in mid-run.
    """
    config = TrainConfig(
        training=Training(
            steps=steps,
            batch_size=BATCH,
            sequence_length=LENGTH,
            learning_rate=1e-3,
            seed=seed,
            evaluate_every=40 if interruptions else 0,
        ),
        lr_schedule=LRSchedule(name="warmup_cosine", warmup_steps=10),
        checkpointing=Checkpointing(str(folder), 30 if interruptions else 0, minutes=0),
        observe=Observe(monitor=True),
        adapter=LoRAConfig(rank=8, target_modules=["all-linear"]) if adapter else None,
    )
    model = LLaMAModel(SHAPE, seed=seed)
    if config.adapter is not None:
        config.adapter.apply(model, seed)
    loader = DataLoader(sequences(seed), BATCH, LENGTH, seed=seed)
    held_out = list(evaluation_batches(sequences(seed + 1000)[:16], BATCH, LENGTH)) if interruptions else []
    fault = FAULTS[name].fault(folder) if name else Fault(folder)
    trainer = Trainer(
        model, config, loader, held_out, callbacks=[fault, *observers(config, folder, Console(width=400))]
    )
    try:
        trainer.run()
    except NumericsError as error:
        print(error)
    finally:
        fault.clean()
    (folder / SECONDS).write_text(json.dumps([report.seconds for report in trainer.reports]))


# ---------------------------------------------------------------------- in the parent
@dataclass
class Run:
    """What a child's run left: its anomalies, seconds of its steps, and what other programs did meanwhile."""

    anomalies: list[dict[str, Any]]
    seconds: list[float]
    shown: str
    others: list[tuple[float, float, float]] = field(default_factory=list)  # Unix time, CPUs, bytes written a second

    def false(self, anomaly: dict[str, Any]) -> bool:
        """Whether it is one that other programs, which used the machine within some seconds of it, cannot explain."""
        near = [other for other in self.others if abs(other[0] - anomaly["time"]) < 3]
        return anomaly["kind"] not in BY_OTHERS or not any(
            cpus > OTHERS or written > OTHERS_WRITE for _, cpus, written in near
        )


class Others:
    """Samples, apart from the monitor, what programs other than a process do to the machine."""

    def __init__(self, process: int) -> None:
        self.process, self.found = process, list[tuple[float, float, float]]()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _used(self) -> tuple[float, float]:
        fields = Path(f"/proc/{self.process}/stat").read_text().rsplit(")", 1)[1].split()
        text = Path(f"/proc/{self.process}/io").read_text()
        written = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("write_bytes:"))
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), float(written)

    def _watch(self) -> None:
        with suppress(OSError):  # the process has ended
            machine = Resources()
            before, used = machine.sample(), self._used()
            while not self._stop.wait(0.5):
                after, now = machine.sample(), self._used()
                delta = difference(before, after)
                seconds = delta["time_seconds"]
                cpus = (delta.get("cpu_busy_seconds", 0.0) - now[0] + used[0]) / seconds
                written = (delta.get("disk_written_bytes", 0.0) - now[1] + used[1]) / seconds
                self.found.append((time.time(), cpus, written))
                before, used = after, now

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample inside the block."""
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()


def child(folder: Path, steps: int, seed: int = 0, fault: str | None = None, **options: bool) -> Run:
    """A watched run in a process of its own; Impossible where its fault cannot be planted here."""
    folder.mkdir(parents=True)
    asked = {"folder": str(folder), "steps": steps, "seed": seed, "name": fault, **options}
    command = [sys.executable, str(Path(__file__).resolve()), "--child", json.dumps(asked)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    others = Others(process.pid)
    with others.watching():
        shown = process.communicate()[0]
    if process.returncode == 3:
        raise Impossible(shown.strip().splitlines()[-1])
    if process.returncode:
        raise SystemExit(f"a run ended with status {process.returncode}:\n{shown}")
    path = folder / "anomalies.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return Run(found, json.loads((folder / SECONDS).read_text()), shown, others.found)


@dataclass(frozen=True)
class Verdict:
    """Whether a fault was found: the anomaly that says it, and what is wrong where `missing` says something."""

    found: dict[str, Any] | None
    missing: str
    run: Run


def planted(name: str, folder: Path) -> Verdict:
    """Plant a fault and look for it, again where others used the machine before it: they may hide it."""
    for number in range(TRIES):
        seen = _planted(name, folder / str(number))
        before = [cpus for _, cpus, _ in seen.run.others[: len(seen.run.others) // 2]]
        if not seen.missing or not before or np.mean(before) < OTHERS:
            break
    return seen


def _planted(name: str, folder: Path) -> Verdict:
    """Plant a fault and look for it; Impossible where this machine does not let it be planted."""
    wanted = FAULTS[name]
    run = child(folder, WHEN + AFTER, fault=name, adapter=wanted.adapter, interruptions=False)
    near = [each for each in run.anomalies if wanted.early <= each["step"] - WHEN <= wanted.late]
    of_kind = [each for each in near if each["kind"] in wanted.kinds]
    said = [each for each in of_kind if any(all(part in cause for part in wanted.says) for cause in each["causes"])]
    right = [each for each in said if each["severity"] == wanted.severity]
    for found, missing in ((right, ""), (said, "severity"), (of_kind, "cause"), (near, "kind")):
        if found:
            lines_missing = f"[{found[0]['severity']}] {found[0]['sentence']}" not in run.shown
            return Verdict(found[0], missing or ("line in the display" if lines_missing else ""), run)
    return Verdict(None, "step", run)


def verdicts(names: list[str], folder: Path, console: Console) -> bool:
    """Plant faults and print what was found of each; whether all were."""
    table = Table("fault", "found", "severity", "z", "what the monitor said", title=f"Faults planted at step {WHEN}")
    complete = True
    for number, name in enumerate(names):
        try:
            seen = planted(name, folder / f"fault-{number}")
        except Impossible as error:
            table.add_row(name, "-", "", "", f"cannot be planted here: {error}")
            continue
        complete &= not seen.missing
        row = seen.found or {"step": "-", "severity": "", "z": 0.0, "sentence": "nothing"}
        wrong = f"MISSED ({seen.missing}): " if seen.missing else ""
        table.add_row(name, f"step {row['step']}", row["severity"], f"{row['z']:.1f}", wrong + row["sentence"])
    console.print(table)
    return complete


def clean_runs(count: int, steps: int, folder: Path, console: Console) -> bool:
    """Runs without a fault: print their alarms; whether false ones are at most one in ONE_IN steps."""
    table = Table("run", "steps", "ms a step", "others' CPUs", "alarms", "false", title="Runs without a fault")
    lines, false, length = list[str](), 0, 0
    for number in range(count):
        options = {"adapter": number % 2 == 1, "interruptions": number % 4 < 2}
        run = child(folder / f"clean-{number}", steps, seed=number, **options)
        wrong = [each for each in run.anomalies if run.false(each)]
        for each in run.anomalies:
            why = "false" if each in wrong else "others were busy"
            lines.append(f"run {number + 1}: {why}: [{each['severity']}] {each['sentence']}")
        false, length = false + len(wrong), length + len(run.seconds)
        cpus = f"{np.mean([other[1] for other in run.others]):.2f}" if run.others else "-"
        figures = (f"{1000 * np.median(run.seconds):.0f}", cpus, str(len(run.anomalies)), str(len(wrong)))
        table.add_row(str(number + 1), str(len(run.seconds)), *figures)
    console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    console.print(f"{false} false alarms in {length:,} steps; at most one in {ONE_IN:,} are allowed.")
    return false <= max(1, length // ONE_IN)


def main(arguments: list[str] | None = None) -> int:
    """Plant, count and print; 0 where every fault was found and clean runs were quiet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="*", choices=list(FAULTS), default=list(FAULTS), help="which (default: all)")
    parser.add_argument("--clean", type=int, default=10, help="runs without a fault (default: 10)")
    parser.add_argument("--steps", type=int, default=120, help="steps of a run without a fault (default: 120)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parsed = parser.parse_args(arguments)
    if parsed.child is not None:
        asked = json.loads(parsed.child)
        try:
            train(Path(asked.pop("folder")), **asked)
        except Impossible as error:
            print(error)
            return 3
        return 0
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        complete = verdicts(parsed.faults, folder, console) if parsed.faults else True
        quiet = clean_runs(parsed.clean, parsed.steps, folder, console) if parsed.clean else True
        return 0 if complete and quiet else 1


if __name__ == "__main__":
    sys.exit(main())
