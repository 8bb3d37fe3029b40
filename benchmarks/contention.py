"""What other programs on the same CPUs do to a step: threads that wait adaptively, against those that sleep or spin."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import models
from harness import Bench, Row, Target, Worker, milliseconds
from models import ALL_LINEARS, REAL

PEERS: tuple[str, ...] = ()
NEIGHBOURS = (0, 1, 2, 4)
QUICK_NEIGHBOURS = (0, 2)
IDLE, LOADED = 0.97, 1 / 1.3  # of the speed of spinning while idle; of sleeping while others run
SPINNING_REPETITIONS = 3  # under load, where a step of spinning threads may take a minute
BUSY = "while True: pass"


class Side(models.Ours):
    """Ours, whose threads wait as each step says."""

    def waiting_step(self, waiting: str, length: int, precision: str) -> float:
        """Seconds of one step."""
        from entrenar._kernels import cpu

        cpu.set_waiting(waiting)
        return self.step(length, precision)


def run(bench: Bench) -> None:
    """The same step in each policy by turns, beside 0, 1, 2 and 4 programs that never wait."""
    if bench.threads == 1:
        print("contention: one thread waits for nobody")
        return
    with bench.worker("models", "Preparation") as preparation:
        preparation.call("prepare", model=REAL)
    with bench.worker("contention", "Side", model=REAL, mode="qlora", targets=ALL_LINEARS) as side:
        for count in QUICK_NEIGHBOURS if bench.quick else NEIGHBOURS:
            _beside(bench, side, count)


def _beside(bench: Bench, side: Worker, count: int) -> None:
    length = 64 if bench.quick else 128
    case = f"{REAL} qlora step of {length}, {count} busy neighbours"

    def turn(waiting: str) -> Callable[[], float]:
        def step() -> float:
            with neighbours(count):
                return side.call("waiting_step", waiting=waiting, length=length, precision="highest")

        return step

    def compare(other: str, target: Target | None, repetitions: int) -> None:
        turns = {name: turn(name) for name in ("adaptive", other)}
        times = bench.interleave(turns, repetitions=repetitions)
        row = Row("contention", f"{case}, adaptive / {other}", times.ratios("adaptive", other), target=target)
        row.detail = milliseconds(times, list(turns))
        bench.add(row)

    passive, active = (Target(limit, tiers=None) for limit in (LOADED, IDLE))
    compare("passive", passive if count else None, bench.repetitions)
    spinning = bench.repetitions if count == 0 else min(SPINNING_REPETITIONS, bench.repetitions)
    compare("active", None if count else active, spinning)


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that use all of a CPU, running inside the block."""
    busy = [subprocess.Popen([sys.executable, "-S", "-c", BUSY]) for _ in range(count)]
    try:
        time.sleep(0.1 if count else 0)
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()
