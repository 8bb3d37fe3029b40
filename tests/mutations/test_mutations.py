"""Hostile files of every kind are loaded, or refused in one sentence: no traceback, no abort, no hang, no swelling.

MUTATIONS is the number of cases a kind (`make mutate-files`), MUTATION_SEED the first of them.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import MEASURED

from .mutate import KINDS, mutated
from .samples import SAMPLES

WORKER = Path(__file__).with_name("worker.py")
COUNT, FIRST = int(os.environ.get("MUTATIONS", "150")), int(os.environ.get("MUTATION_SEED", "0"))
SECONDS = 15  # a case; the slowest that is sound takes one
SHOWN = 20
SLOW = {"checkpoint": 4, "checkpoint, summed again": 4}  # whole runs: of these one case in four
ROWS = pytest.StashKey[list[str]]()  # of the table


@dataclass
class Findings:
    """What became of the cases of one kind."""

    verdicts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def add(self, verdict: str, seed: int, file: str, text: str) -> None:
        self.verdicts[verdict] += 1
        self.said.append(text)
        if verdict != "loaded" and verdict != "refused":
            self.wrong.append(f"seed {seed}, {file}: {verdict}: {text}")


def lines(process: subprocess.Popen[bytes]) -> list[bytes] | None:
    """What a worker says next: whole lines, none at its end; None where it says nothing for SECONDS."""
    assert process.stdout is not None
    held = b""
    limit = time.monotonic() + SECONDS
    while not held.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, limit - time.monotonic()))
        if not ready:
            return None
        part = os.read(process.stdout.fileno(), 1 << 16)
        if not part:
            return []
        held += part
    return held.splitlines()


def run(kind: str, sample: Path, folder: Path, first: int, last: int) -> Findings:
    """Every case from `first` up to `last`; a worker that dies or hangs is named and replaced."""
    findings = Findings()
    seed = first
    while seed < last:
        with (folder / "stderr").open("w+b") as stderr:
            command = [sys.executable, str(WORKER), kind, *map(str, (sample, folder, seed, last))]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment, cwd=folder)
            begun, said = None, lines(process)
            while said:
                for case in map(json.loads, said):
                    begun = None if "verdict" in case else case
                    if "verdict" in case:
                        findings.add(case["verdict"], case["seed"], case["file"], case["text"])
                        seed = case["seed"] + 1
                said = lines(process)
            process.kill()
            status = process.wait()
            stderr.seek(0)
            text = stderr.read().decode(errors="replace").strip()[-300:]
        if begun is not None:
            findings.add("hang" if said is None else f"died ({status})", begun["seed"], begun["file"], repr(text))
            seed = begun["seed"] + 1
        elif seed < last:
            raise AssertionError(f"the worker did not begin ({status}): {text}")
    return findings


@pytest.mark.chaos
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_mutated_file_is_loaded_or_refused_in_one_sentence(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sample, cases = tmp_path / "sample", tmp_path / "cases"
    cases.mkdir()
    SAMPLES[kind](sample)
    start, count = time.monotonic(), COUNT // SLOW.get(kind, 1)
    findings = run(kind, sample, cases, FIRST, FIRST + count)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(findings.verdicts.items()))
    rows = request.config.stash.setdefault(ROWS, [])
    if not rows:
        request.config.stash.setdefault(MEASURED, []).append(("mutated files", rows))
    rows.append(f"{kind:26}{counts} in {time.monotonic() - start:.0f} s")
    shown = "\n".join(findings.wrong[:SHOWN])
    assert not findings.wrong, f"{len(findings.wrong)} of {count} (files in {cases}):\n{shown}"
    assert findings.verdicts["refused"] > count // 20  # the mutations do reach what is read
    # nor is every case refused for one and the same reason; of a checkpoint, though, no bit may differ
    assert kind == "checkpoint" or findings.verdicts["loaded"] > count // 50


@pytest.mark.unit
def test_the_same_seed_gives_the_same_mutation_and_others_differ(tmp_path: Path) -> None:
    SAMPLES["TOML"](tmp_path)
    files = {"run.toml": (tmp_path / "run.toml").read_bytes()}
    made = [mutated("TOML", seed, files) for seed in (*range(50), *range(50))]
    assert made[:50] == made[50:]
    assert len(set(made)) > 40


@pytest.mark.chaos
@pytest.mark.parametrize("kind", list(KINDS))
def test_the_sound_sample_is_loaded(kind: str, tmp_path: Path) -> None:
    SAMPLES[kind](tmp_path / "sample")
    (tmp_path / "cases").mkdir()
    findings = run(kind, tmp_path / "sample", tmp_path / "cases", -1, 0)
    assert (findings.verdicts, findings.said) == ({"loaded": 1}, [""])


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("plant", "verdict"),
    [
        ("raise KeyError('x')", "wrong: KeyError"),
        ("raise EntrenarError('no stop')", "wrong: no sentence of one line"),
        ("os.abort()", "died (-6)"),
        ("bytearray(1 << 33)", "wrong: MemoryError"),
        ("__import__('time').sleep(60)", "hang"),
    ],
)
def test_what_is_wrong_is_found_and_the_cases_after_it_are_run(
    plant: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose loader does the planted thing at seed 1 and nothing otherwise."""
    text = WORKER.read_text()
    planted = text.replace("LOADERS[kind](folder)", f"{plant} if folder.name.endswith('-1') else None")
    if plant.startswith("raise"):
        planted = text.replace(
            "        LOADERS[kind](folder)", f"        if folder.name.endswith('-1'):\n            {plant}"
        )
    assert planted != text
    worker = tmp_path / "worker.py"
    worker.write_text(planted)
    (tmp_path / "mutate.py").write_text(WORKER.with_name("mutate.py").read_text())
    monkeypatch.setattr(sys.modules[__name__], "WORKER", worker)
    monkeypatch.setattr(sys.modules[__name__], "SECONDS", 4)
    (tmp_path / "cases").mkdir()
    SAMPLES["TOML"](tmp_path / "sample")
    findings = run("TOML", tmp_path / "sample", tmp_path / "cases", 0, 3)
    assert findings.verdicts["loaded"] == 2
    assert len(findings.wrong) == 1
    assert findings.wrong[0].startswith("seed 1, run.toml: ")
    assert verdict in findings.wrong[0]
