"""summary.json: what a run was given, what of it was used and what was not, and what came of it."""

from __future__ import annotations

import json
import resource
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from entrenar._kernels import cpu
from entrenar.io.atomic import atomic_file
from entrenar.observe.hardware import machine
from entrenar.train.config import TrainConfig
from entrenar.train.evaluate import Evaluation
from entrenar.train.step import StepReport

SUMMARY = "summary.json"


@dataclass
class Summary:
    """`remarks` are sentences for the user, shown before training too; `data` counts the examples; `run` is an id.

    `model` is the base's path, `estimate` the peak memory in bytes by item, `samples` the text of "prompt", "before"
    and "after"; `setting` is what `setting_of` returns.
    """

    remarks: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    run: str = ""
    model: str | None = None
    estimate: dict[str, int] = field(default_factory=dict)
    samples: dict[str, str] = field(default_factory=dict)
    setting: dict[str, Any] = field(default_factory=dict)

    def write(
        self, path: Path, reports: Sequence[StepReport], before: Evaluation | None, after: Evaluation | None
    ) -> None:
        """Write the summary as JSON; evaluations that were not made are null. Raises OSError."""
        table = {
            "run": self.run,
            "written": datetime.now().astimezone().isoformat(timespec="seconds"),
            "model": self.model,
            "steps": len(reports),
            "tokens": sum(report.tokens for report in reports),
            "trained_tokens": sum(report.trained_tokens for report in reports),
            "data": self.data,
            "held_out": {name: value and asdict(value) for name, value in (("before", before), ("after", after))},
            "samples": self.samples,
            "memory": {"estimate": self.estimate, "peak_resident_bytes": peak_resident()},
            "remarks": self.remarks,
            **self.setting,
        }
        with atomic_file(path) as temporary:
            text = json.dumps(table, indent=2, ensure_ascii=False, default=repr)
            temporary.write_text(text + "\n", encoding="utf-8", errors="replace")


def setting_of(config: TrainConfig, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration by section, the fingerprint of all that decides the bits, and the machine as it is used."""
    sections = asdict(config)
    adapter = sections.pop("adapter")
    if config.adapter is not None:
        sections[config.adapter.section] = adapter
    used = {
        "threads": cpu.get_num_threads(),
        "tier": cpu.tier(),
        "precision": cpu.effective_precision(cpu.get_matmul_precision()),
    }
    return {"configuration": sections, "fingerprint": dict(fingerprint), "machine": machine() | used}


def peak_resident() -> int:
    """Bytes of this process's largest resident set so far (getrusage, which counts in KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
