"""The suite in several processes: what the workers measured and counted reaches the one that reports."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("xdist")

CONFTEST = Path(__file__).with_name("conftest.py")
FILE = """
import pytest
from conftest import MEASURED, cpu

def test_measured(request):
    request.config.stash.setdefault(MEASURED, []).append(("table of {name}", ["row of {name}"]))

def test_threads():
    assert cpu.get_num_threads() == max(1, cpu.default_num_threads() // 2)
"""
PYTEST = "import sys, pytest; sys.path.remove(''); sys.exit(pytest.main(sys.argv[1:]))"


@pytest.mark.unit
def test_tables_and_counts_of_two_workers_are_put_together(tmp_path: Path) -> None:
    shutil.copy(CONFTEST, tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"test_{name}.py").write_text(FILE.format(name=name))
    ours = ("PYTEST_", "OMP_NUM_THREADS", "ENTRENAR_NUM_THREADS", "RAYON_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    command = [sys.executable, "-c", PYTEST, "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"]
    command += ["--rootdir", str(tmp_path), "--report", str(tmp_path / "report.json"), str(tmp_path)]
    run = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    for name in ("a", "b"):
        assert f" table of {name} " in run.stdout
        assert f"\nrow of {name}\n" in run.stdout
    assert json.loads((tmp_path / "report.json").read_text())["counts"]["all"] == {"passed": 4}
