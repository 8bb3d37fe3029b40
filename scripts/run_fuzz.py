"""Install what the fuzz targets need, run each under libFuzzer, and say what each one did.

Exits with 1 where a target crashes, runs fewer inputs than it was told to, or covers so little that it cannot have been
instrumented. The inputs of crashes and the full logs are in fuzz/crashes/; what a target learned stays in fuzz/corpus/.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

FUZZ = Path(__file__).resolve().parents[1] / "fuzz"
CRASHES = FUZZ / "crashes"
FIGURES = "figures.json"  # what the last run did, for scripts/metrics_report.py
TARGETS = {"tensor_ops": 100_000, "parameter_calc": 1_000_000, "lora_config": 1_000_000}  # and inputs by default
LEAST_COVERAGE = 150  # edges; an uninstrumented target covers a handful
PYTHONS = ((3, 11), (3, 13))  # atheris has wheels for these; the sources of older ones need clang
PROGRESS_SECONDS = 30


@dataclass
class Outcome:
    """What the log of one target says."""

    target: str
    runs: int
    seconds: float
    status: int
    executed: int = 0
    edges: int = 0
    features: int = 0
    inputs: int = 0
    size: str = "0b"

    @property
    def problem(self) -> str | None:
        """Why the target fails, if it does."""
        if self.status:
            return f"exit status {self.status}"
        if self.executed < self.runs:
            return f"ran {self.executed:,} of {self.runs:,} inputs"
        if self.edges < LEAST_COVERAGE:
            return f"covered {self.edges} edges, expected at least {LEAST_COVERAGE}: is the target instrumented?"
        return None

    def __str__(self) -> str:
        """One block of a few lines."""
        return (
            f"{self.target}: {self.problem or 'no crash'}\n"
            f"  iterations  {self.executed:>11,}   in {self.seconds:,.0f} s\n"
            f"  executions  {self.executed / max(self.seconds, 1e-9):>11,.0f}   a second\n"
            f"  corpus      {self.inputs:>11,}   inputs, {self.size}\n"
            f"  coverage    {self.edges:>11,}   edges, {self.features:,} features"
        )


def install() -> None:
    """The package and atheris; ends the program with a sentence where this Python cannot have them."""
    version = sys.version_info[:2]
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        sys.exit(
            f"The fuzz targets need atheris 3.0.0, which installs on Python 3.11 to 3.13, and this is Python "
            f"{version[0]}.{version[1]}: run `make llama-fuzz PYTHON=python3.11`."
        )
    command = [sys.executable, "-m", "pip", "install", "-q", ".[fuzz]"]
    if subprocess.run(command, cwd=FUZZ.parent, check=False).returncode:
        sys.exit("The fuzz targets need the package and atheris 3.0.0, and pip could not install them (see above).")


def last(pattern: str, text: str) -> re.Match[str] | None:
    """The last place where the pattern matches."""
    matches = list(re.finditer(pattern, text))
    return matches[-1] if matches else None


def read(outcome: Outcome, log: str) -> Outcome:
    """Fill in the figures of libFuzzer's log."""
    if executed := last(r"stat::number_of_executed_units:\s*(\d+)", log):
        outcome.executed = int(executed[1])
    if line := last(r"cov: (\d+) ft: (\d+) corp: (\d+)/(\w+)", log):
        outcome.edges, outcome.features, outcome.inputs = int(line[1]), int(line[2]), int(line[3])
        outcome.size = line[4]
    return outcome


def report(target: str, path: Path, done: threading.Event) -> None:
    """Print the log's last figures now and then, so that a long run is not silent."""
    while not done.wait(PROGRESS_SECONDS):
        if line := last(r"#(\d+)\s.*cov: (\d+).*corp: (\d+).*exec/s: (\d+)", path.read_text(errors="replace")):
            print(
                f"{target}: {int(line[1]):,} inputs, {line[4]} a second, {line[2]} edges, corpus {line[3]}", flush=True
            )


def run(target: str, runs: int) -> Outcome:
    """One target in a process of its own, one thread each: several run side by side."""
    path = CRASHES / f"{target}.log"
    command = [sys.executable, str(FUZZ / f"{target}.py"), f"-runs={runs}", f"-artifact_prefix={CRASHES}/{target}-"]
    environment = os.environ | {"ENTRENAR_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done, start = threading.Event(), time.monotonic()
    with path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        watcher = threading.Thread(target=report, args=(target, path, done))
        watcher.start()
        status = process.wait()
    done.set()
    watcher.join()
    text = path.read_text(errors="replace")
    outcome = read(Outcome(target, runs, time.monotonic() - start, status), text)
    print(f"\n{outcome}\n", flush=True)
    if outcome.problem:
        print(f"The end of {path}:\n" + "\n".join(text.splitlines()[-40:]), file=sys.stderr)
        for crash in sorted(CRASHES.glob(f"{target}-*")):
            print(f"To see it again: {sys.executable} {FUZZ / target}.py {crash}", file=sys.stderr, flush=True)
    return outcome


def main() -> int:
    """0 where every target ran all its inputs without a crash."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)} (default: all)")
    parser.add_argument("--runs", type=int, help="inputs of each target (default: a million, 100,000 of the graphs)")
    parser.add_argument("--no-install", action="store_true", help="take the package and atheris as they are")
    options = parser.parse_args()
    unknown = [target for target in options.targets if target not in TARGETS]
    if unknown:
        parser.error(f"{unknown[0]} is no target; choose from {', '.join(TARGETS)}")
    if not options.no_install:
        install()
    CRASHES.mkdir(parents=True, exist_ok=True)
    chosen = options.targets or list(TARGETS)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        outcomes = list(pool.map(lambda target: run(target, options.runs or TARGETS[target]), chosen))
    figures = [dataclasses.asdict(outcome) | {"problem": outcome.problem} for outcome in outcomes]
    (CRASHES / FIGURES).write_text(json.dumps({"date": time.strftime("%Y-%m-%d"), "targets": figures}, indent=2) + "\n")
    return int(any(outcome.problem for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
