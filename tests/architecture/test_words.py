"""One word for a thing: what the glossary retires stands nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .sources import ROOT, files, name, text

pytestmark = pytest.mark.architecture
GLOSSARY = ROOT / "docs" / "glossary.md"
HISTORY = {"CHANGELOG.md", "docs/glossary.md"}
# Names of files that were renamed and have no row of their own.
FILES = ("int4.pyx", "source.h", "search.pxd", "quant.c", "gemm_few.c", "gemm_strided.c", "modules.py")


def rows() -> list[list[str]]:
    """The cells of the glossary's rows: term, meaning, formerly."""
    lines = [line.strip("|").split("|") for line in text(GLOSSARY).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines if not set("".join(line)) <= set("- ")]


def retired() -> list[str]:
    """What stands in backticks in the third column."""
    return sorted({word for row in rows() for word in re.findall(r"`([^`]+)`", row[2])} | set(FILES))


def uses(words: list[str], source: str) -> list[str]:
    """Those of the words that `source` has, as whole words; one that ends with ( is a call or a class."""
    ends = [re.escape(word) + ("" if word.endswith("(") else r"(?!\w)") for word in words]
    found = re.findall(rf"(?<!\w)(?:{'|'.join(ends)})", source)
    return sorted(set(found))


def test_every_row_has_three_cells_and_a_term_of_its_own() -> None:
    assert {len(row) for row in rows()} == {3}
    terms = [term for row in rows() for term in row[0].split(", ") if row[0] != "term"]
    assert sorted(terms) == sorted(set(terms))


def test_no_retired_word_is_used() -> None:
    words = retired()
    assert len(words) > 30
    searched = [path for path in files() if name(path) not in HISTORY and path != Path(__file__)]
    found = {name(path): uses(words, text(path)) for path in searched}
    assert {path: used for path, used in found.items() if used} == {}


def test_no_file_has_a_retired_name() -> None:
    assert [name(path) for path in files() if path.name in retired()] == []


@pytest.mark.parametrize("source", ["cdef few_rows(x)", "`few_rows`", "simd.few_rows[i]", "x = few_rows\n"])
def test_a_retired_word_is_seen(source: str) -> None:
    assert uses(["few_rows", "trunk"], source) == ["few_rows"]


def test_a_longer_word_is_another() -> None:
    assert uses(["codes", "Block("], "bytecodes opcodes codes_ Block-scaled") == []
    assert uses(["Block("], "class Block(Module)") == ["Block("]
