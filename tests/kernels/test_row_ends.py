"""No kernel reads a byte that a weight does not have: files are mapped, and nothing lies behind their last one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from .native import ROOT


@pytest.mark.chaos
@pytest.mark.skipif(sys.platform != "linux", reason="protects pages with Linux' mprotect")
def test_nothing_beside_a_weight_is_read(tier: str) -> None:
    """In a process of its own, which a read elsewhere kills: its last line says which type was read."""
    command = [sys.executable, "-m", "tests.kernels.row_ends", tier]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.returncode} after {done.stdout.splitlines()[-1:]}: {done.stderr[-2000:]}"
