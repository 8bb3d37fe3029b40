"""The verb `doctor`: what this machine and installation are, and what it can do."""

from __future__ import annotations

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from entrenar.config import ArgumentParser, print_out
from entrenar.errors import printable
from entrenar.train import report

DESCRIPTION = """Say what this machine and installation are, and measure what they can do, in some two seconds.

    entrenar doctor
    entrenar doctor --json

It is what a report of a fault should have in it; values of secret variables are left out.
"""


def main(
    arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None
) -> dict[str, Any]:
    """Examine and print; what --json prints. SystemExit for a wrong flag."""
    parser = ArgumentParser(
        prog=prog, description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="print JSON (default: false)")
    parsed = parser.parse_args(arguments)
    from entrenar.train.doctor import examine, remarks

    found = examine()
    said = remarks(found)
    if parsed.json:
        print_out(json.dumps(found | {"remarks": said}, indent=2))
        return found
    console = report.Output()
    report.summary(console, "entrenar", {name: escape(printable(value)) for name, value in _rows(found).items()})
    report.remarks(console, said)
    return found


def _rows(found: dict[str, Any]) -> dict[str, str]:
    """The table, for a person."""
    peaks, quota = found["peaks"], found["cgroup_quota"]
    installed = [f"{name} {number}" for name, number in found["installed"].items() if number is not None]
    absent = [name for name, number in found["installed"].items() if number is None]
    precisions = [f"{name} is {does}" for name, does in found["precisions"].items() if name != does]
    rates = [f"{peaks[name]:.0f} {unit}" for name, unit in RATES.items() if peaks[name]]
    return {
        "version": f"{found['version']} in {found['folder']}",
        "Python": found["python"],
        "system": found["system"],
        "processor": found["processor"],
        "SIMD tier": f"{found['tier']} (of {', '.join(found['tiers'])})",
        "precisions": ", ".join(precisions) or "all",
        "threads": f"{found['threads']} ({found['threads_why']}), waiting {found['waiting']}",
        "OpenMP": "yes" if found["openmp"] else "no",
        "CPUs": f"{found['cpus']}, {found['affinity']} in the affinity mask, quota "
        + ("none" if quota is None else f"{quota:g}"),
        "memory": f"{report.gib(found['available_bytes'])} available of {report.gib(found['memory_bytes'])}",
        f"peaks of {peaks['threads']} threads": ", ".join(rates),
        "cache": found["cache"],
        "installed": ", ".join(installed),
        "not installed": ", ".join(absent) or "nothing",
        **found["environment"],
    }


RATES = {
    "fp32_gflops": "GFLOP/s fp32",
    "int16_gops": "GOP/s int16",
    "int8_gops": "GOP/s int8",
    "read_gb_s": "GB/s read",
}
