"""The verb `analyze`: kinds of steps and anomalies of a run, from what it recorded."""

from __future__ import annotations

import json
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from entrenar.config import ArgumentParser, print_out, text_argument
from entrenar.train import report

if TYPE_CHECKING:
    from entrenar.observe.anomaly import Anomaly, Step
    from entrenar.observe.clusters import Clusters

DESCRIPTION = """Find the slow and the unusual steps of a run, with their causes where it was watched (--monitor).

    entrenar analyze outputs/run
    entrenar analyze --json outputs/run

RUN is the output folder of a run, or its metrics.jsonl. Needs scikit-learn: pip install 'entrenar[analyze]'.
"""
UNWATCHED = "The run was not watched (--monitor), so that causes are unknown."
LISTED = 12  # steps of a cluster that are named


def main(
    arguments: Sequence[str] | None = None, *, description: str = DESCRIPTION, prog: str | None = None
) -> dict[str, Any]:
    """Analyze a run and print it; what --json prints.

    FormatError where the run has no steps or a file of it is damaged, ConfigError where scikit-learn is missing,
    SystemExit for a wrong flag.
    """
    parser = ArgumentParser(
        prog=prog, description=description, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", type=text_argument, help="output folder of a run")
    parser.add_argument("--json", action="store_true", help="print JSON (default: false)")
    parsed = parser.parse_args(arguments)
    from entrenar.observe.clusters import cluster
    from entrenar.train.folder import ANOMALIES, JSON_LINES
    from entrenar.train.recorded import read_steps

    path = Path(parsed.run)
    path = path / JSON_LINES if path.is_dir() else path
    steps = [step.unverified() for step in read_steps(path)]
    kinds = cluster(steps)
    found, watched = anomalies(steps, path.parent / ANOMALIES)
    table = as_table(steps, kinds, found, watched)
    if parsed.json:
        print_out(json.dumps(table, indent=2, ensure_ascii=False))
    else:
        show(report.Output(), table)
    return table


def anomalies(steps: Sequence[Step], path: Path) -> tuple[list[Anomaly], bool]:
    """What the monitor recorded in `path`, and what is found in the steps besides; whether the run was watched."""
    from entrenar.observe.anomaly import StepDetector, read_anomalies

    recorded = read_anomalies(path)
    detector = StepDetector()
    found = [anomaly for step in steps for anomaly in detector.observe(step)[0]]
    known = {(anomaly.step, anomaly.kind) for anomaly in recorded}
    both = recorded + [anomaly for anomaly in found if (anomaly.step, anomaly.kind) not in known]
    return sorted(both, key=lambda anomaly: anomaly.step), any(step.resources for step in steps)


def as_table(steps: Sequence[Step], kinds: Clusters, found: Sequence[Anomaly], watched: bool) -> dict[str, Any]:
    """Everything as values that JSON can hold."""
    high = kinds.high_latency
    return {
        "steps": len(steps),
        "watched": watched,
        "silhouette": kinds.silhouette,
        "clusters": [
            {"steps": len(each.steps), "seconds": each.seconds, "phases": each.share, "high_latency": each is high}
            for each in kinds.found
        ],
        "high_latency_steps": high.steps if high else [],
        "anomalies": [anomaly.table() for anomaly in found],
    }


def show(console: Console, table: dict[str, Any]) -> None:
    """The clusters and the anomalies, for a person."""
    clusters, silhouette = table["clusters"], table["silhouette"]
    said = "one kind of step" if silhouette is None else f"{len(clusters)} kinds of steps, silhouette {silhouette:.2f}"
    shown = Table(title=f"{table['steps']} steps: {said} (KMeans)", title_justify="left")
    for heading in ("cluster", "steps", "median seconds", "phases"):
        shown.add_column(heading, justify="left" if heading == "phases" else "right")
    for number, each in enumerate(clusters, 1):
        parts = sorted(each["phases"].items(), key=lambda item: -item[1])[:3]
        phases = ", ".join(f"{name} {100 * share:.0f} %" for name, share in parts)
        name = f"{number} (high latency)" if each["high_latency"] else str(number)
        shown.add_row(name, str(each["steps"]), f"{each['seconds']:.4g}", phases)
    console.print(shown)
    steps = table["high_latency_steps"]
    if steps:
        more = f" and {len(steps) - LISTED} more" if len(steps) > LISTED else ""
        console.print(f"High-latency steps: {', '.join(map(str, steps[:LISTED]))}{more}", soft_wrap=True)
    if not table["watched"]:
        console.print(UNWATCHED, soft_wrap=True)
    if not table["anomalies"]:
        console.print("No anomalies.")
        return
    listed = Table(title=f"{len(table['anomalies'])} anomalies", title_justify="left")
    for heading in ("step", "severity", "z", "kind", "what"):
        listed.add_column(heading, justify="right" if heading in ("step", "z") else "left")
    for row in table["anomalies"]:
        ended = "" if row["ended"] is None else f" (over at step {row['ended']})"
        figures = (str(row["step"]), row["severity"], f"{row['z']:.1f}", row["kind"].replace("_", " "))
        listed.add_row(*figures, escape(str(row["sentence"]) + ended))
    console.print(listed)
