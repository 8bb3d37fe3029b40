"""docs/edges.md: every variation with its reference and verdict, as the last `make edges` found them."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from .faults import FAULTS
from .harness import Variation, Verdict

VERDICTS = pytest.StashKey[list[tuple[Variation, Verdict]]]()
HEAD = """# The edges

What entrenar reads, changed in one place at a time, beside what the reference makes of it: *equal*, or *refused*
with this sentence. The last table lists the faults that were found by use, with the variations and tests that hold
them. `make edges` runs every variation and writes this page.
"""
FAULTS_HEAD = "## Faults that were found by use"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def write_table(path: Path, verdicts: list[tuple[Variation, Verdict]]) -> None:
    """Counts first, then a table an area."""
    counts = Counter(verdict.kind for _, verdict in verdicts)
    lines = [HEAD, f"{len(verdicts)} variations: {counts['equal']} equal, {counts['refused']} refused by name.", ""]
    for area in dict.fromkeys(variation.area for variation, _ in verdicts):
        rows = [(variation, verdict) for variation, verdict in verdicts if variation.area == area]
        kinds = Counter(verdict.kind for _, verdict in rows)
        lines += [f"## {area}", "", f"{kinds['equal']} equal, {kinds['refused']} refused.", ""]
        lines += ["| variation | reference | verdict | |", "|---|---|---|---|"]
        lines += [
            f"| {_cell(v.name)} | {_cell(v.reference)} | {verdict.kind} | {_cell(verdict.note)} |"
            for v, verdict in rows
        ]
        lines.append("")
    path.write_text("\n".join([*lines, *fault_lines()]) + "\n", encoding="utf-8")


def fault_lines() -> list[str]:
    """The last section: what was given, what is right, what holds it."""
    lines = [FAULTS_HEAD, "", "| given | right | held by |", "|---|---|---|"]
    rows = [
        (_cell(fault.given), _cell(fault.right), "<br>".join(f"`{_cell(name)}`" for name in fault.tests))
        for fault in FAULTS
    ]
    return lines + [f"| {given} | {right} | {held} |" for given, right, held in rows]


@cache
def table_kinds(path: Path) -> dict[str, str]:
    """The verdict of each variation's id, as the page has them."""
    kinds, area = {}, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line == FAULTS_HEAD:
            break
        if line.startswith("## "):
            area = line[3:]
        elif line.startswith("| ") and not line.startswith("| variation |"):
            name, _, kind, _ = line.replace("\\|", "\0")[2:].split(" |", 3)
            text = name.replace("\0", "|").replace("&lt;", "<").replace("\\\\", "\\")
            kinds[f"{area}: {text}"] = kind.strip()
    return kinds
