"""Compare entrenar with its peers on this machine: `python benchmarks/run.py [entry ...] [--quick]`.

Prints every result as it comes, then a table of those that have a target, and writes all of them as JSON. The exit
status is 1 where a target that was set for this machine's tier is missed by more than the noise of its measurement, 2
where a peer is not installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import time
from pathlib import Path

from harness import HERE, Bench, table
from history import commit, keep

ENTRIES = (
    "gemm",
    "attention",
    "tape",
    "optimizer",
    "step",
    "decode",
    "weights",
    "load",
    "memory",
    "scaling",
    "contention",
    "quality",
    "curve",
    "observe",
    "serve",
)
INSTALL = {"torch": "pip install torch==2.13.0", "xllamacpp": "pip install xllamacpp"}  # the rest is the extra
DEFAULT_INSTALL = "pip install '.[peers]'"


def missing_packages(entries: list[str]) -> list[str]:
    """What the entries compare with and this environment lacks."""
    wanted = {"entrenar"} | {name for entry in entries for name in importlib.import_module(entry).PEERS}
    names = sorted(wanted, key=lambda name: (name != "torch", name))  # which the others would install as they like
    return [name for name in names if importlib.util.find_spec(name) is None]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entries", nargs="*", metavar="entry", help=f"any of {', '.join(ENTRIES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="few and small cases, 3 repetitions: does it work?")
    parser.add_argument("--repetitions", type=int, help="of every comparison (default: 7)")
    parser.add_argument(
        "--cpu-time", action="store_true", help="one thread, CPU seconds: for a machine that others use (no verdicts)"
    )
    parser.add_argument("--json", type=Path, help="where the results go (default: benchmarks/results/TIME.json)")
    parser.add_argument("--history", type=Path, help="also append the results, with the commit, to this file")
    parsed = parser.parse_args()
    unknown = sorted(set(parsed.entries) - set(ENTRIES))
    if unknown:
        parser.error(f"there is no entry {unknown[0]!r}; choose any of {', '.join(ENTRIES)}")
    if parsed.repetitions is not None and parsed.repetitions < 1:
        parser.error("--repetitions must be at least 1")
    return parsed


def main() -> int:
    """Run the chosen entries; the exit status."""
    options = arguments()
    entries = options.entries or list(ENTRIES)
    missing = missing_packages(entries)
    if missing:
        print(f"Not installed: {', '.join(missing)}. Install what the comparison needs:", file=sys.stderr)
        for command in dict.fromkeys(INSTALL.get(name, DEFAULT_INSTALL) for name in missing):
            print(f"    {command}", file=sys.stderr)
        return 2
    try:
        of = commit() if options.history else ""  # before hours of work
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    bench = Bench(options.quick, options.repetitions, options.cpu_time)
    print(json.dumps(bench.description, indent=2))
    path = options.json or HERE / "results" / time.strftime("%Y%m%d-%H%M%S.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        started = time.perf_counter()
        importlib.import_module(entry).run(bench)
        print(f"({entry}: {time.perf_counter() - started:.0f} s)", flush=True)
        path.write_text(json.dumps(bench.to_json(), indent=1) + "\n")  # after each: a later one may fail
    bench.machine.close()
    if options.history:
        print(f"\n{keep(options.history, bench.to_json(), of)} results of {of} kept in {options.history}")
    print(f"\n{table([row for row in bench.rows if row.target is not None])}\n\nAll results: {path}")
    for row in bench.missed():
        print(f"MISSED: {row.entry} {row.case}: {row.value:.3g} {row.unit}, target {row.cells()[4]}", file=sys.stderr)
    return int(bool(bench.missed()))


if __name__ == "__main__":
    sys.exit(main())
