"""Keeps results as JSON lines, in the format that entrenar/observe/history.py describes and reads."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from harness import HERE


def commit() -> str:
    """The commit of this checkout, with a + where files differ from it; RuntimeError where git cannot tell."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        raise RuntimeError(f"--history: git cannot tell the commit of {HERE} ({str(said).strip()}).") from error


def keep(path: Path, results: dict[str, Any], of: str) -> int:
    """Append a line for each result of a run of the commit `of`; how many. OSError where it cannot be written."""
    machine = results["machine"]
    head = {"commit": of, "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    head |= {name: machine[name] for name in ("cpu", "tier", "threads")} | {"packages": machine["versions"]}
    head |= {name: results[name] for name in ("quick", "cpu_time")}
    kept = ("entry", "case", "unit", "lower", "values")
    lines = [json.dumps(head | {name: row[name] for name in kept}, ensure_ascii=False) for row in results["rows"]]
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(line + "\n" for line in lines))
    return len(lines)
