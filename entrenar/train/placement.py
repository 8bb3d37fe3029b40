"""Where the threads of computations run that must not share a core's faults."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

TOPOLOGY = Path("/sys/devices/system/cpu")


def orders(cpus: Sequence[int], threads: int, topology: Path = TOPOLOGY) -> list[list[int]]:
    """Three orders of `cpus`: in each, as many as can be of the first `threads` have another core than in the others.

    A thread's CPU is the one at its place. Hardware threads of a core count as that core, where `topology` says so.
    """
    core = {number: _core(number, topology) for number in cpus}
    seen: dict[object, int] = {}
    ranks = {}
    for number in cpus:
        ranks[number] = seen.get(core[number], 0)
        seen[core[number]] = ranks[number] + 1
    line = sorted(cpus, key=lambda number: (ranks[number], number))  # one of each core first
    turned = [line[shift:] + line[:shift] for shift in range(len(line))]
    chosen = [line]
    while len(chosen) < 3:
        chosen.append(max(turned, key=lambda order: _moved(order, chosen, threads, core)))
    return chosen


def _moved(order: list[int], chosen: list[list[int]], threads: int, core: dict[int, object]) -> tuple[int, int]:
    """How many threads are on another core than in each order so far, at least; then how many cores are new."""
    cores = [core[number] for number in order[:threads]]
    before = [[core[number] for number in other[:threads]] for other in chosen]
    moved = min(sum(a != b for a, b in zip(cores, other, strict=True)) for other in before)
    return moved, len(set(cores) - {each for other in before for each in other})


def _core(number: int, topology: Path) -> object:
    try:
        folder = topology / f"cpu{number}" / "topology"
        return tuple((folder / name).read_text().strip() for name in ("physical_package_id", "core_id"))
    except OSError:
        return number
