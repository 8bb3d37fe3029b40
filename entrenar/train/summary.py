"""summary.json: what a run was given, what of it was used and what was not, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from entrenar.io.atomic import atomic_file
from entrenar.train.evaluate import Evaluation
from entrenar.train.step import StepReport

SUMMARY = "summary.json"


@dataclass
class Summary:
    """`remarks` are sentences for the user, shown before training too; `data` counts the examples; `run` is an id."""

    remarks: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    run: str = ""

    def write(
        self, path: Path, reports: Sequence[StepReport], before: Evaluation | None, after: Evaluation | None
    ) -> None:
        """Write the summary as JSON; evaluations that were not made are null. Raises OSError."""
        table = {
            "run": self.run,
            "steps": len(reports),
            "tokens": sum(report.tokens for report in reports),
            "trained_tokens": sum(report.trained_tokens for report in reports),
            "data": self.data,
            "held_out": {name: value and asdict(value) for name, value in (("before", before), ("after", after))},
            "remarks": self.remarks,
        }
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
