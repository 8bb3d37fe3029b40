"""How every benchmark measures: sides in processes of their own, turn and turn about, and medians of their ratios.

The speed of a shared machine moves by tens of percent within a minute, so nothing is compared across time: in each
repetition every side runs once (in reverse order every other time), next to a short measurement of what the machine can
do just then. A result is the median over the repetitions of a ratio inside one repetition; its spread is the quartiles;
its noise half of the distance between them. This process only waits: it imports nothing heavy, so that its own memory
never counts as a side's.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SETTLE = 0.02  # seconds between turns: the threads of the side before stop spinning
HERE = Path(__file__).parent


class WorkerError(RuntimeError):
    """A side failed; the message is its traceback."""


class Worker:
    """A side of a comparison: `name` of `module`, made in a fresh process with `arguments`."""

    def __init__(self, module: str, name: str, threads: int | None, arguments: dict[str, Any]) -> None:
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment["OPENBLAS_NUM_THREADS"] = "1"  # NumPy only prepares data; its threads would spin on
        if threads is not None:
            environment |= {"OMP_NUM_THREADS": str(threads), "ENTRENAR_NUM_THREADS": str(threads)}
        self.peak_rss_mib: float | None = None
        command = [sys.executable, str(HERE / "worker.py"), module, name, json.dumps(arguments)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.name = f"{module}.{name}"
        self._answer()

    def call(self, method: str, **arguments: Any) -> Any:
        """The value of the side's method."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.close()
            status = self.process.returncode
            how = f"was killed by signal {-status} (9: out of memory)" if status < 0 else f"ended with status {status}"
            raise WorkerError(f"{self.name} {how}.")
        answer = json.loads(line)
        if "error" in answer:
            self.close()
            raise WorkerError(f"{self.name} failed:\n{answer['error']}")
        return answer["value"]

    def close(self) -> float:
        """End the process; its peak resident memory in MiB, as /usr/bin/time reports it."""
        if self.peak_rss_mib is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            _, status, usage = os.wait4(self.process.pid, 0)
            self.process.returncode = os.waitstatus_to_exitcode(status)
            self.peak_rss_mib = usage.ru_maxrss / 1024
        return self.peak_rss_mib


@dataclass(frozen=True)
class Target:
    """What the result should be at least (or at most), on the tiers that it was set for; None: on all."""

    limit: float
    at_most: bool = False
    tiers: tuple[str, ...] | None = ("v4i",)

    def verdict(self, value: float, noise: float, tier: str) -> str:
        if self.tiers is not None and tier not in self.tiers:
            return f"not applicable on {tier}"
        gap = value - self.limit if self.at_most else self.limit - value
        return "met" if gap <= 0 else "within the noise" if gap <= noise else "MISSED"


@dataclass
class Row:
    """One result: a value for each repetition, and what is worth knowing beside it."""

    entry: str
    case: str
    values: list[float]
    unit: str = "x"
    target: Target | None = None
    roof: str = ""
    detail: str = ""
    verdict: str = ""
    timed: bool = True
    less: bool | None = None  # whether less is better, where neither target nor unit says so

    @property
    def lower(self) -> bool:
        """Whether less is better: as its target says; a ratio without one says how many times faster."""
        if self.less is not None:
            return self.less
        return self.unit != "x" if self.target is None else self.target.at_most

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.values) < 2:
            return self.value, self.value
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    @property
    def noise(self) -> float:
        low, high = self.quartiles
        return (high - low) / 2

    def cells(self) -> list[str]:
        low, high = self.quartiles
        goal = "" if self.target is None else f"{'<=' if self.target.at_most else '>='} {self.target.limit:g}"
        spread = f"{low:.3g} .. {high:.3g}" if len(self.values) > 1 else ""
        result = f"{self.value:.3g} {self.unit}"
        return [self.entry, self.case, result, spread, goal, self.verdict, self.roof, self.detail]


HEADINGS = ["entry", "case", "result", "quartiles", "target", "verdict", "of the machine's peak", "medians"]


@dataclass
class Times:
    """Seconds of every turn, and the machine's peaks, by repetition."""

    seconds: dict[str, list[float]]
    peaks: list[dict[str, float]] = field(default_factory=list)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def best(self, names: Sequence[str]) -> str:
        """The turn among `names` with the least median."""
        return min(names, key=self.median)

    def ratios(self, of: str, to: str) -> list[float]:
        """How many times faster `of` is than `to`, by repetition."""
        return [b / a for a, b in zip(self.seconds[of], self.seconds[to], strict=True)]

    def share(self, name: str, work: float, peak: str) -> str:
        """Percent of the machine's `peak` that `name` reached at `work` operations or bytes a turn."""
        shares = [
            work / 1e9 / seconds / peaks[peak]
            for seconds, peaks in zip(self.seconds[name], self.peaks, strict=True)
            if peaks.get(peak)
        ]
        return f"{100 * statistics.median(shares):.0f} % of {peak}" if shares else f"no {peak} peak on this tier"


class Bench:
    """What an entry's `run(bench)` works with: workers, interleaving, and the results so far."""

    def __init__(self, quick: bool, repetitions: int | None, cpu_time: bool) -> None:
        self.quick, self.cpu_time = quick, cpu_time
        if cpu_time:
            os.environ |= {"BENCHMARK_CLOCK": "cpu", "OMP_NUM_THREADS": "1", "ENTRENAR_NUM_THREADS": "1"}
        self.repetitions = repetitions or (3 if quick else 7)
        self.rows: list[Row] = []
        self.machine = Worker("machine", "Machine", None, {})
        self.description = self.machine.call("describe")
        self.tier: str = self.description["tier"]
        self.threads: int = self.description["threads"]

    def precisions(self, four_bits: bool) -> list[str]:
        """The precisions that this tier computes as such; "medium" is for 4-bit weights only."""
        effective = self.description["precisions"]
        return [name for name in effective if effective[name] == name and (four_bits or name != "medium")]

    @contextmanager
    def worker(self, module: str, name: str, **arguments: Any) -> Iterator[Worker]:
        """A side in a process of its own, ended at the end of the block."""
        worker = Worker(module, name, self.threads, arguments)
        try:
            yield worker
        finally:
            worker.close()

    def interleave(
        self, turns: Mapping[str, Callable[[], float]], peaks: Sequence[str] = (), repetitions: int | None = None
    ) -> Times:
        """Run every turn (it returns its seconds) once untimed, then once in each repetition."""
        for turn in turns.values():
            turn()
        times = Times({name: [] for name in turns})
        for repetition in range(repetitions or self.repetitions):
            order = list(turns) if repetition % 2 == 0 else list(turns)[::-1]
            for name in order:
                time.sleep(SETTLE)
                times.seconds[name].append(turns[name]())
            time.sleep(SETTLE)
            times.peaks.append({peak: self.machine.call("peak", name=peak) for peak in peaks})
        return times

    def add(self, row: Row, show: bool = True) -> Row:
        """Keep a result, with the verdict on its target, and print it."""
        if row.target is not None:
            judged = not (self.cpu_time and row.timed)
            row.verdict = row.target.verdict(row.value, row.noise, self.tier) if judged else "CPU time: not judged"
        self.rows.append(row)
        if show:
            print("  ".join(cell for cell in row.cells() if cell), flush=True)
        return row

    def missed(self) -> list[Row]:
        return [row for row in self.rows if row.verdict == "MISSED"]

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                "entry": row.entry,
                "case": row.case,
                "unit": row.unit,
                "lower": row.lower,
                "median": row.value,
                "quartiles": row.quartiles,
                "values": row.values,
                "target": row.target and {"limit": row.target.limit, "at_most": row.target.at_most},
                "verdict": row.verdict,
                "roof": row.roof,
                "detail": row.detail,
            }
            for row in self.rows
        ]
        return {
            "machine": self.description,
            "quick": self.quick,
            "cpu_time": self.cpu_time,
            "repetitions": self.repetitions,
            "rows": rows,
        }


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of results, aligned for the eye."""
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in padded)


def milliseconds(times: Times, names: Sequence[str]) -> str:
    """The medians of turns, for a row's detail."""
    return ", ".join(f"{name} {1e3 * times.median(name):.3g} ms" for name in names)
