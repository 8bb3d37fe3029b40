"""Hold the plan of `entrenar memory` against the peak of runs that take real steps; exit with 1 where one is off.

    python scripts/memory_table.py [MODEL]

All weights, LoRA and QLoRA, with gradient checkpointing and without, in several lengths of rows, and all weights with
schedule-free AdamW and with steps that are verified. Each is a
process of its own, `entrenar finetune` over texts of this repository, whose peak resident set the kernel counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
WITHIN = 0.05  # relative difference
STEPS = 3
CASES: tuple[tuple[str, str, int, tuple[str, ...]], ...] = (  # adapter, checkpointing, tokens, and other flags
    ("none", "off", 256, ()),
    ("none", "off", 256, ("--optimizer", "schedulefree_adamw", "--schedule", "constant")),
    ("none", "off", 256, ("--verify-every", "1")),
    ("none", "on", 512, ()),
    ("lora", "off", 256, ()),
    ("lora", "on", 1024, ()),
    ("qlora", "off", 512, ()),
    ("qlora", "on", 1024, ()),
)


def texts(path: Path) -> None:
    """The documentation as records of text, enough for every row of every step."""
    with path.open("w", encoding="utf-8") as file:
        for page in sorted((ROOT / "docs").glob("*.md"))[:12]:
            text = page.read_text(encoding="utf-8")
            for start in range(0, min(len(text), 60_000), 6000):
                file.write(json.dumps({"text": text[start : start + 6000]}) + "\n")


def program(*words: str) -> list[str]:
    """The command line of a verb."""
    return [sys.executable, "-m", "entrenar", *words]


def planned(flags: list[str]) -> dict[str, int]:
    """The bytes of the plan by part."""
    ended = subprocess.run(program("memory", "--json", *flags), capture_output=True, text=True, cwd=ROOT, check=False)
    if ended.returncode:
        raise SystemExit(ended.stderr)
    found: dict[str, int] = json.loads(ended.stdout)["parts"]
    return found


def measured(flags: list[str], folder: Path) -> int:
    """The peak resident set, in bytes, of a run of some steps."""
    training = ["--steps", str(STEPS), "--held-out-fraction", "0", "--output", str(folder)]
    with (folder.parent / "log").open("w") as log:
        run = subprocess.Popen(program("finetune", *training, *flags), cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(run.pid, 0)
        run.returncode = os.waitstatus_to_exitcode(status)
    if run.returncode:
        raise SystemExit((folder.parent / "log").read_text())
    return usage.ru_maxrss * 1024


def main(model: list[str]) -> int:
    """Print a row for each configuration; how many are off."""
    wrong = 0
    print("| trained | checkpointing | tokens | plan, MiB | measured, MiB | plan / measured |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        data = Path(place) / "texts.jsonl"
        texts(data)
        for number, (adapter, again, length, more) in enumerate(CASES):
            flags = ["--adapter", adapter, "--gradient-checkpointing", again, "--sequence-length", str(length)]
            flags += ["--data", str(data), *(["--model", *model] if model else []), *more]
            plan, peak = sum(planned(flags).values()), measured(flags, Path(place) / str(number))
            off = abs(plan / peak - 1) > WITHIN
            wrong += off
            what = " ".join(["all weights" if adapter == "none" else adapter, *more])
            row = f"{what} | {again} | {length} | {plan / 2**20:.0f} | {peak / 2**20:.0f} | {plan / peak:.3f}"
            print(f"| {row} |{' off by more than 10 %' if off else ''}", flush=True)
    return wrong


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:2])))
