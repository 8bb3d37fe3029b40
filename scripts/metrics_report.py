"""Print what a test run measured: tests by category, gradient errors, the last fuzzing run where there was one.

`python scripts/metrics_report.py FILE` reads what `pytest --report FILE` wrote; the gradient table is computed here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FUZZ_FIGURES = ROOT / "fuzz" / "crashes" / "figures.json"
OUTCOMES = ("passed", "failed", "skipped")


def tests(path: Path) -> bool:
    """A line a category; whether the run ended well."""
    table = json.loads(path.read_text())
    print(f"Tests by category ({table['seconds']:.0f} s; a test may have several)")
    for category, counts in sorted(table["counts"].items(), key=lambda item: (item[0] == "all", item[0])):
        print(f"  {category:14}" + "".join(f"{counts.get(outcome, 0):8,} {outcome}" for outcome in OUTCOMES))
    return table["status"] == 0


def gradients() -> bool:
    """The last line of the gradient table, or all of it where an error is too large."""
    command = [sys.executable, str(ROOT / "scripts" / "gradient_table.py")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    print("Gradients against finite differences")
    lines = result.stdout.rstrip().splitlines()
    print("  " + "\n  ".join(lines[-1:] if result.returncode == 0 else [*lines, result.stderr]))
    return result.returncode == 0


def fuzzing() -> bool:
    """What the last `make llama-fuzz` in this checkout did."""
    print("Fuzzing")
    if not FUZZ_FIGURES.exists():
        print("  not run in this checkout (make llama-fuzz)")
        return True
    table = json.loads(FUZZ_FIGURES.read_text())
    for target in table["targets"]:
        print(
            f"  {target['target']:16}{target['executed']:12,} inputs, {target['edges']:6,} edges, "
            f"{target['problem'] or 'no crash'} ({table['date']})"
        )
    return not any(target["problem"] for target in table["targets"])


def main() -> int:
    """0 where everything in the report is good."""
    if len(sys.argv) != 2:
        sys.exit("usage: metrics_report.py FILE, which pytest --report FILE wrote")
    return int(not all([tests(Path(sys.argv[1])), gradients(), fuzzing()]))


if __name__ == "__main__":
    sys.exit(main())
