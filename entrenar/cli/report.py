"""The verb `report`: a run as one HTML file."""

from __future__ import annotations

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entrenar.config import ArgumentParser, print_out, text_argument
from entrenar.errors import FormatError
from entrenar.io.atomic import atomic_file

DESCRIPTION = """Write what a run did as one HTML file, which opens in any browser without a network.

    entrenar report outputs/run
    entrenar report --out report.html --json outputs/run

RUN is the output folder of a run. The report has its curves, the timeline of its steps, anomalies (--monitor), memory,
kernels (--profile), samples, configuration and fingerprint.
"""


def main(
    arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None
) -> dict[str, Any]:
    """Write the report of a run; what --json prints.

    FormatError where there is no run, a file of it is damaged or the report cannot be written, SystemExit for a wrong
    flag.
    """
    parser = ArgumentParser(
        prog=prog, description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", type=text_argument, help="output folder of a run")
    parser.add_argument(
        "--out", metavar="FILE", type=text_argument, help="the file to write (default: report.html in the run's folder)"
    )
    parser.add_argument("--json", action="store_true", help="print the report's figures as JSON too (default: false)")
    parsed = parser.parse_args(arguments)
    from entrenar.observe.report_page import page
    from entrenar.observe.report_run import facts, read_run
    from entrenar.train.folder import ANOMALIES, JSON_LINES, METRICS, PROFILE, REPORT
    from entrenar.train.summary import SUMMARY

    folder = Path(parsed.run)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "there is no such folder"
        raise FormatError(f"{folder}: {what}; expected the output folder of a run.")
    if not any((folder / name).exists() for name in (JSON_LINES, METRICS)):
        raise FormatError(f"{folder}: holds no run ({JSON_LINES} is missing); expected the output folder of a run.")
    run = read_run(*(folder / name for name in (JSON_LINES, METRICS, SUMMARY, ANOMALIES, PROFILE)))
    out = Path(parsed.out) if parsed.out else folder / REPORT
    with atomic_file(out) as temporary:
        temporary.write_text(page(run, str(folder.resolve())), encoding="utf-8", errors="replace")
    table = {"report": str(out), **facts(run)}
    print_out(json.dumps(table, indent=2) if parsed.json else f"Written: {out}")
    return table
