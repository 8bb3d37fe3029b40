"""The suite notices planted bugs: one line of a copy of the package is made wrong, and the named tests must fail.

Bugs in kernels are planted by `make fuzz-check`, which compiles; these are in Python, one in each part of the package.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import entrenar

from .sources import ROOT

pytestmark = [pytest.mark.mutation, pytest.mark.slow]
# `python -m pytest` would put the working directory, with the checkout's package, before the copy
PYTEST = "import sys, pytest; sys.path.remove(''); sys.exit(pytest.main(sys.argv[1:]))"
OPTIONS = (
    "-q",
    "-x",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:hypothesispytest",
    "-m",
    "not peers and not model and not slow",
)
TESTS_FAILED = 1  # pytest's exit status; 2 and above say that nothing was tested


@dataclass(frozen=True)
class Mutant:
    """A wrong line of the package, and the tests that guard the right one."""

    file: str
    right: str
    wrong: str
    tests: str
    only: str = ""  # -k

    @property
    def id(self) -> str:
        return self.file.removesuffix(".py").replace("/", ".")


MUTANTS = [
    Mutant("optim/clip.py", "1.0 if factor >= 1 else", "1.0 if factor >= 0.5 else", "tests/optim/test_clip.py"),
    Mutant(
        "optim/schedule.py",
        "self.gamma ** (self.last_step // self.step_size)",
        "self.gamma ** ((self.last_step + 1) // self.step_size)",
        "tests/optim/test_schedule.py",
    ),
    Mutant(
        "io/safetensors.py",
        "if not isinstance(file, str) or Path(file).name != file or len(file) > LONGEST_NAME:",
        "if not isinstance(file, str):",
        "tests/io/test_safetensors.py",
        "index",
    ),
    Mutant(
        "adapters/lora.py",
        "return alpha / (math.sqrt(rank) if self.use_rslora else rank)",
        "return alpha / (math.sqrt(rank) if not self.use_rslora else rank)",
        "tests/adapters/test_lora.py",
    ),
    Mutant(
        "models/decoder.py",
        'v_proj", (kv_size, hidden)',
        'v_proj", (q_size, hidden)',
        "tests/models/test_config.py",
        "parameters",
    ),
    Mutant(
        "data/masking.py",
        "trained = _overlapping(offsets, spans) != trained_else",
        "trained = _overlapping(offsets, spans) | True",
        "tests/data/test_masking.py",
    ),
    Mutant("train/objective.py", "divisor=total, ", "divisor=batch.trained_tokens, ", "tests/train/test_trainer.py"),
    Mutant(
        "train/trainer.py",
        'self.schedule.load_state_dict(values["schedule"])',
        "pass",
        "tests/train/test_checkpoint.py",
        "continues_to_the_bits",
    ),
    Mutant(
        "train/checkpoint.py",
        "for path in steps_in(folder)[keep:]:",
        "for path in steps_in(folder)[keep + 1 :]:",
        "tests/train/test_checkpoint.py",
        "newest_checkpoints_are_kept",
    ),
    Mutant(
        "autograd/gradcheck.py",
        "analytic = np.zeros(arrays[i].shape) if grad is None else",
        "analytic = numeric_gradient(run, arrays, i, weights.astype(np.float64), step) if grad is None else",
        "tests/autograd/test_gradcheck.py",
    ),
]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package under test, compiled modules included."""
    folder = tmp_path_factory.mktemp("mutants") / "entrenar"
    shutil.copytree(
        Path(entrenar.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__", "*.c", "*.pyx")
    )
    return folder


def run(package: Path, *selection: str) -> subprocess.CompletedProcess[str]:
    """The tests of the checkout against the copy."""
    environment = os.environ | {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PYTEST, *OPTIONS, *selection]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def selection(mutant: Mutant) -> list[str]:
    return [mutant.tests, *(["-k", mutant.only] if mutant.only else [])]


def test_the_copy_is_what_is_tested(package: Path, tmp_path: Path) -> None:
    probe = tmp_path / "test_probe.py"
    probe.write_text("import entrenar\ndef test_where(): print('from', entrenar.__file__)\n")
    assert f"from {package}" in run(package, "-s", str(probe)).stdout


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.id)
def test_a_planted_bug_fails_the_tests_of_its_part(package: Path, mutant: Mutant) -> None:
    path = package / mutant.file
    sound = path.read_text()
    assert sound.count(mutant.right) == 1, f"{mutant.file} no longer holds {mutant.right!r}; plant another bug"
    path.write_text(sound.replace(mutant.right, mutant.wrong))
    try:
        result = run(package, *selection(mutant))
    finally:
        path.write_text(sound)
    assert result.returncode == TESTS_FAILED, f"{mutant.wrong!r} went unnoticed:\n{result.stdout[-2000:]}"
    assert re.search(r"^FAILED ", result.stdout, re.MULTILINE), result.stdout[-2000:]


def test_the_bugs_that_fuzzing_must_find_can_still_be_planted() -> None:
    plants = runpy.run_path(str(ROOT / "scripts" / "plant_bugs.py"))["PLANTS"]
    assert len(plants) >= 6
    for plant in plants:
        assert plant.right in (ROOT / plant.file).read_text(), f"{plant.file} no longer holds {plant.right!r}"
