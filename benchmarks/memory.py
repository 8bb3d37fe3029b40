"""Peak resident memory of loading and two steps, in a process of its own, as /usr/bin/time sees it."""

from __future__ import annotations

from dataclasses import replace

from harness import Bench, Row, Target, Worker
from models import ALL_LINEARS
from step import LENGTH, PEERS, QV, Case, cases

__all__ = ["PEERS", "run"]
ANYWHERE = None  # bytes do not depend on the SIMD tier
SEVEN_BILLION_MIB = 4.9 * 1024
# without a target: the base as wide as the peer's, and every activation kept
FOR_COMPARISON = [
    Case("1.1b", "lora", QV, {}, None, options={"dtype": "float32"}),
    Case("1.1b", "qlora", QV, {}, None),
]


def _peak(worker: Worker, steps: int = 2) -> tuple[float, str]:
    """The peak of the whole process in MiB, and what it was after loading."""
    loaded = worker.call("loaded")["peak_mib"]
    for _ in range(steps):
        worker.call("step", length=LENGTH)
    return worker.close(), f"{loaded:.0f} loading"


def _compare(bench: Bench, case: Case, checkpointing: bool = False) -> None:
    """One row; under `checkpointing` both sides compute every layer again."""
    again = {"checkpointing": True} if checkpointing else {}
    with bench.worker("models", "Ours", **case.base, **case.options, **again) as ours:
        mine, my_load = _peak(ours)
    with bench.worker("models", "Peer", **case.base, **again) as peer:
        theirs, their_load = _peak(peer)
    label = f"{case.label}{', checkpointing' if checkpointing else ''}"
    target = None if case.memory is None else Target(case.memory, at_most=True, tiers=ANYWHERE)
    detail = f"ours {mine:.0f} MiB ({my_load}), peer {theirs:.0f} MiB ({their_load})"
    bench.add(Row("memory", label, [mine / theirs], target=target, detail=detail, timed=False, less=True))


def run(bench: Bench) -> None:
    """Every case of `step`, 4-bit bases with checkpointing too, and a 7B shape against an absolute limit."""
    chosen = cases(bench)
    for case in chosen:
        _compare(bench, case)
        if case.mode == "qlora":
            options = {key: value for key, value in case.options.items() if key != "checkpointing"}
            _compare(bench, replace(case, memory=None, options=options), checkpointing=True)
    if not bench.quick:
        for case in FOR_COMPARISON:
            _compare(bench, case)
        _seven_billion(bench)


def _seven_billion(bench: Bench) -> None:
    with bench.worker("models", "Preparation") as preparation:
        preparation.call("prepare", model="7b")
    with bench.worker("models", "Ours", model="7b", mode="qlora", targets=ALL_LINEARS, checkpointing=True) as ours:
        peak, loading = _peak(ours, steps=1)
    target = Target(SEVEN_BILLION_MIB, at_most=True, tiers=ANYWHERE)
    bench.add(Row("memory", "7b qlora checkpointing", [peak], "MiB", target, detail=loading, timed=False))
