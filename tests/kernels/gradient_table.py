"""The gradient error of every case, as `make gradients` prints it (on the tier in use)."""

from __future__ import annotations

import sys

import numpy as np
from rich.console import Console
from rich.table import Table

from entrenar._kernels import cpu
from entrenar.autograd import gradcheck

from .cases import CASES

CLOSE = 6e-3  # what most errors stay below


def main() -> int:
    """Exit status 1 where any error exceeds gradcheck.LIMIT."""
    table = Table("op", "case", "inputs", "largest error", title=f"Gradients against finite differences ({cpu.tier()})")
    wrong = close = 0
    for case in (case for case in CASES if case.gradient):
        found = gradcheck.errors(case.run, case.inputs(np.random.default_rng(7)), case.differentiable)
        worst = max(found.values(), default=0.0)
        good = worst < gradcheck.LIMIT
        wrong += not good
        close += worst < CLOSE
        table.add_row(case.op, case.label, str(len(found)), f"{worst:.2e}" + ("" if good else "  WRONG"))
    console = Console(width=None if sys.stdout.isatty() else 120, markup=False)
    console.print(table)
    console.print(f"{table.row_count} cases: {close} below {CLOSE:g}, {wrong} beyond {gradcheck.LIMIT:g}", markup=False)
    return int(wrong > 0)
