"""The table of `make gradients`: it names each case with its error, and fails where one is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from entrenar import autograd
from entrenar.autograd import Tensor, no_grad

from . import gradient_table
from .cases.base import Case, normal

pytestmark = pytest.mark.gradient


def half_forgotten(x: Tensor) -> Tensor:
    """x * x, whose gradient counts one of the two factors only."""
    with no_grad():
        constant = x * 1.0
    return constant * x


RIGHT = Case("mul", "a right one", normal((3, 4)), lambda x: x * x, np.square)
LARGE = Case("mul", "too large to check", normal((300, 400)), lambda x: x * x, np.square, gradient=False)
WRONG = Case("mul", "a wrong one", normal((3, 4)), half_forgotten, np.square)


def test_right_gradients_are_listed_and_the_exit_status_is_0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gradient_table, "CASES", [RIGHT, LARGE])
    assert gradient_table.main() == 0
    printed = capsys.readouterr().out
    assert "a right one" in printed
    assert "too large" not in printed
    assert "1 cases: 1 below 0.006, 0 beyond 0.02" in printed


def test_a_wrong_gradient_is_named_and_the_exit_status_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gradient_table, "CASES", [RIGHT, WRONG])
    assert gradient_table.main() == 1
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if "a wrong one" in line and "5.00e-01  WRONG" in line]
    assert "2 cases: 1 below 0.006, 1 beyond 0.02" in printed


def test_every_op_with_a_gradient_is_in_the_table() -> None:
    checked = {case.op for case in gradient_table.CASES if case.gradient}
    assert checked == set(autograd.OPS) - {"cached_attention"}  # which is for generation and has no backward
