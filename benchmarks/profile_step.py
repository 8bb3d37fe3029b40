"""Where the time of one training step goes, by kernel: `python benchmarks/profile_step.py [--precision high]`.

The kernels count themselves (entrenar._kernels.profile): calls, seconds, FLOPs and bytes. What a step takes beside them
is the tape, the data and the optimizer's Python. The sum is printed beside the time of a step that is not counted.

`--perf` samples an uncounted step with Linux perf instead and prints percent by function.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from models import ALL_LINEARS, REAL, SHAPES, Ours, Preparation

from entrenar._kernels import profile
from entrenar.autograd.precision import auto_precision

Counters = dict[str, tuple[int, float, int, int]]


def table(counters: Counters, steps: int, seconds: float) -> str:
    """The kernels of a step of `seconds`, the longest first."""
    rows = [["kernel", "calls", "ms", "percent", "GFLOP/s", "GB/s"], ["---", "--:", "--:", "--:", "--:", "--:"]]
    for name, (calls, spent, flops, read) in sorted(counters.items(), key=lambda item: -item[1][1]):
        rates = [f"{amount / spent / 1e9:.1f}" if spent else "" for amount in (flops, read)]
        share = 100 * spent / steps / seconds
        rows.append([name, f"{calls / steps:.0f}", f"{1e3 * spent / steps:.1f}", f"{share:.1f}", *rates])
    return "\n".join(f"| {name:30} | {' | '.join(f'{cell:>8}' for cell in cells)} |" for name, *cells in rows)


def by_kernel(side: Ours, length: int, precision: str, steps: int) -> None:
    """Print the table of kernels, and what a step takes that is not counted."""
    plain = sorted(side.step(length, precision) for _ in range(steps + 1))[steps // 2]
    profile.reset()
    profile.enable()
    try:
        seconds = sum(side.step(length, precision) for _ in range(steps)) / steps
    finally:
        profile.disable()
    found = profile.counters()
    print(table(found, steps, seconds))
    total = sum(spent for _, spent, _, _ in found.values()) / steps
    print(f"\nSum {1e3 * total:.0f} ms of a step of {1e3 * seconds:.0f} ms; a step that is not counted "
          f"{1e3 * plain:.0f} ms ({length / plain:.0f} tokens/s).")  # fmt: skip


def by_function(options: argparse.Namespace) -> None:
    """Sample the same steps in another process with perf; print functions beyond half a percent."""
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder, "perf.data"))
        arguments = ["--model", options.model, "--length", str(options.length), "--precision", options.precision]
        command = [sys.executable, __file__, *arguments, "--steps", str(options.steps), "--only-steps"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()  # loaded and warm
        record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "997", "-o", data, "-p", str(child.pid)]
        sampler = subprocess.Popen(record)
        time.sleep(1)  # until it has attached
        child.communicate("go\n")
        if child.returncode or sampler.wait():
            raise SystemExit(f"The steps ended with status {child.returncode}, perf with {sampler.returncode}.")
        report = ["perf", "report", "-q", "-i", data, "-F", "overhead,sym", "--percent-limit", "0.5", "--stdio"]
        print(subprocess.run(report, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Profile steps of a 4-bit base under adapters on every linear."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=REAL, choices=[REAL, *SHAPES])
    parser.add_argument("--length", type=int, default=512, help="tokens of the sequence")
    parser.add_argument("--precision", default=auto_precision(), choices=["highest", "high", "medium"])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--perf", action="store_true", help="by function, sampled with Linux perf")
    parser.add_argument("--only-steps", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model != REAL:
        Preparation().prepare(options.model)
    if options.perf:
        return by_function(options)
    side = Ours(options.model, "qlora", ALL_LINEARS)
    if options.only_steps:
        side.step(options.length, options.precision)
        print("warm", flush=True)
        sys.stdin.readline()
        for _ in range(options.steps):
            side.step(options.length, options.precision)
        return None
    return by_kernel(side, options.length, options.precision, options.steps)


if __name__ == "__main__":
    main()
