"""Every fault that was found by use is held by variations and tests that exist, and docs/edges.md lists it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("transformers")  # of which the lists of variations are made

from .areas import all_variations
from .fault import Fault
from .faults import FAULTS
from .harness import Verdict
from .table import fault_lines, table_kinds, write_table

pytestmark = pytest.mark.peers
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "edges.md"


@cache
def ids() -> frozenset[str]:
    return frozenset(variation.id for variation in all_variations())


@cache
def functions(file: str) -> frozenset[str]:
    """The test functions of a module."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def missing(fault: Fault) -> list[str]:
    """What holds it by name and is not there."""
    absent = []
    for name in fault.tests:
        file, parts, function = name.partition("::")
        there = (ROOT / file).is_file() and function in functions(file) if parts else name in ids()
        absent += [] if there else [name]
    return absent


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.given for fault in FAULTS])
def test_what_holds_a_fault_exists(fault: Fault) -> None:
    assert fault.tests
    assert missing(fault) == []
    assert len(set(fault.tests)) == len(fault.tests)
    assert all(text.endswith(".") and text.isprintable() for text in (fault.given, fault.right))


def test_a_name_that_is_none_is_seen() -> None:
    names = ("config.json: nothing", "tests/edges/test_faults.py::test_nothing", "tests/nothing.py::test_x")
    assert missing(Fault("x.", "y.", names)) == list(names)
    assert missing(Fault("x.", "y.", ("tests/edges/test_faults.py::test_a_name_that_is_none_is_seen",))) == []


def test_the_page_ends_with_the_faults() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.endswith("\n".join(["", *fault_lines()]) + "\n"), "run `make edges`"
    assert len(FAULTS) >= 70


def test_no_fault_is_taken_for_a_variation(tmp_path: Path) -> None:
    variation = all_variations()[0]
    write_table(tmp_path / "page.md", [(variation, Verdict("equal", "logits"))])
    assert table_kinds(tmp_path / "page.md") == {variation.id: "equal"}
    assert (tmp_path / "page.md").read_text(encoding="utf-8").count("\n| ") == 3 + len(FAULTS)
