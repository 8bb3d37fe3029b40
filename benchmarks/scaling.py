"""What a second thread and a longer sequence do to a step."""

from __future__ import annotations

import statistics
from functools import partial

from harness import Bench, Row, Target, milliseconds
from models import ALL_LINEARS, REAL
from step import PEERS

__all__ = ["PEERS", "run"]
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
QUICK_LENGTHS = (128, 256)
PEAKS = {"highest": "fp32", "high": "int16", "medium": "int8"}
EFFICIENCY = 1.85 / 2  # of every thread beyond the first: 1.85 on two


def run(bench: Bench) -> None:
    """Ours on one thread and on all; then both sides at every length, with the cost of a token."""
    with bench.worker("models", "Preparation") as preparation:
        for model in (REAL, "134m"):
            preparation.call("prepare", model=model)
    if bench.threads > 1:
        _threads(bench)
    _lengths(bench)


def _threads(bench: Bench) -> None:
    length = 128 if bench.quick else 512
    arguments = {"model": REAL, "mode": "qlora", "targets": ALL_LINEARS}
    with bench.worker("models", "Ours", **arguments) as ours:
        for precision in bench.precisions(four_bits=True):
            turns = {
                f"{count} threads": partial(ours.call, "step", length=length, precision=precision, threads=count)
                for count in (1, bench.threads)
            }
            times = bench.interleave(turns)
            names = list(turns)
            case = f"{REAL} qlora step of {length}, 1 -> {bench.threads} threads, {precision}"
            target = None if bench.quick else Target(EFFICIENCY * bench.threads, tiers=None)
            row = Row("scaling", case, times.ratios(names[1], names[0]), target=target)
            row.roof = _peak_scaling(bench, PEAKS[precision])
            row.detail = milliseconds(times, names)
            bench.add(row)


def _peak_scaling(bench: Bench, name: str) -> str:
    """What all threads together reach of an instruction, over what one does: registers only, no memory."""
    pairs = [[bench.machine.call("peak", name=name, threads=count) for count in (1, bench.threads)] for _ in range(3)]
    if not pairs[0][0]:
        return f"no {name} peak on this tier"
    return f"the peak of {name} scales {statistics.median(every / one for one, every in pairs):.2f} x"


def _lengths(bench: Bench) -> None:
    arguments = {"model": "134m", "mode": "qlora", "targets": ["q_proj", "v_proj"]}
    with bench.worker("models", "Ours", **arguments) as ours, bench.worker("models", "Peer", **arguments) as peer:
        shortest: float | None = None
        for length in QUICK_LENGTHS if bench.quick else LENGTHS:
            sides = {"ours": ours, "peer": peer}
            turns = {name: partial(side.call, "step", length=length) for name, side in sides.items()}
            times = bench.interleave(turns, repetitions=None if length <= 512 else min(3, bench.repetitions))
            cost = 1e6 * times.median("ours") / length
            shortest = shortest or cost
            row = Row("scaling", f"134m qlora step of {length} tokens / peer", times.ratios("ours", "peer"))
            row.detail = f"{cost:.0f} us a token, {cost / shortest:.2f} of the shortest's; peer "
            row.detail += f"{1e6 * times.median('peer') / length:.0f} us"
            bench.add(row)
