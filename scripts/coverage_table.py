"""Build a copy of the package that counts its lines, run tests on it, print which share of each file's lines ran.

Python lines are counted by coverage.py, those of Cython and C by gcov (Cython's tracing cannot enter a parallel loop).
Only processes that end by themselves are counted. Arguments are pytest's (default: the unit and gradient tests).
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPY = ROOT / "build" / "coverage"
COPIED = ("entrenar", "tests", "fuzz", "examples", "configs", "scripts", "benchmarks", "docs", ".ci")
GENERATED = "build/cython/entrenar/"
MARK = re.compile(r'\s*/\* "(entrenar/[^"]+\.p(?:yx|xd))":(\d+)$')
Lines = dict[int, int]


def build() -> None:
    """A copy of the sources, compiled in place with counters."""
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    for name in COPIED:
        shutil.copytree(ROOT / name, COPY / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, COPY / path.name)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=COPY, env=os.environ | {"ENTRENAR_COVERAGE": "1"}, check=True)


def run_tests(arguments: list[str]) -> int:
    """pytest under coverage.py; its exit status."""
    environment = os.environ | {"PYTHONPATH": str(COPY), "COVERAGE_FILE": str(COPY / ".coverage")}
    command = [sys.executable, "-m", "coverage", "run", "--source", "entrenar", "--parallel-mode", "-m", "pytest", "-q"]
    status = subprocess.run([*command, *arguments], cwd=COPY, env=environment, check=False).returncode
    for action in (["combine", "-q"], ["json", "-q", "-o", str(COPY / "python.json")]):
        subprocess.run([sys.executable, "-m", "coverage", *action], cwd=COPY, env=environment, check=True)
    return status


def python_lines() -> dict[str, Lines]:
    """Of each Python file the lines that could run, with 1 for those that did."""
    table = json.loads((COPY / "python.json").read_text())
    return {
        name: dict.fromkeys(found["missing_lines"], 0) | dict.fromkeys(found["executed_lines"], 1)
        for name, found in table["files"].items()
    }


def cython_lines(path: Path) -> dict[int, tuple[str, int]]:
    """Of each line of a generated C file the line of Cython behind it, by the comment before each statement."""
    found: dict[int, tuple[str, int]] = {}
    current = None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if match := MARK.match(line):
            current = match[1], int(match[2])
        elif line == "}":  # the end of a function: what follows belongs to no statement
            current = None
        elif current:
            found[number] = current
    return found


def compiled_lines() -> dict[str, Lines]:
    """Of each Cython and C file the lines that could run, with how often they did on any tier."""
    found: dict[str, Lines] = defaultdict(dict)
    for counters in sorted(COPY.rglob("*.gcda")):
        command = ["gcov", "--json-format", "--stdout", str(counters)]
        said = subprocess.run(command, cwd=COPY, capture_output=True, check=True).stdout
        for part in said.splitlines():
            data = gzip.decompress(part) if part[:2] == b"\x1f\x8b" else part
            for file in json.loads(data)["files"]:
                name = os.path.relpath(COPY / file["file"], COPY)
                made_of = cython_lines(COPY / name) if name.startswith(GENERATED) else {}
                for line in file["lines"]:
                    number = line["line_number"]
                    if name.startswith("entrenar/"):
                        of = name
                    elif number in made_of:
                        of, number = made_of[number]
                    else:
                        continue
                    found[of][number] = found[of].get(number, 0) + line["count"]
    return found


def main(arguments: list[str]) -> int:
    """Print a line a file and the totals; the tests' exit status."""
    build()
    status = run_tests(arguments or ["-m", "unit or gradient"])
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, lines in sorted((python_lines() | compiled_lines()).items()):
        ran = sum(count > 0 for count in lines.values())
        if lines:
            print(f"{ran:6} of {len(lines):6} lines  {100 * ran / len(lines):5.1f} %  {name}")
        kind = {".py": "Python", ".c": "C", ".h": "C"}.get(Path(name).suffix, "Cython")
        totals[kind] = [totals[kind][0] + ran, totals[kind][1] + len(lines)]
    for kind, (ran, count) in totals.items():
        print(f"{kind}: {ran:,} of {count:,} lines ran, {100 * ran / max(count, 1):.1f} %")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
