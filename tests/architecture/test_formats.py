"""docs/formats.md says what the code has: every family, rope type, weight type and kind of adapter, and no other."""

from __future__ import annotations

import re

import pytest

from entrenar.adapters.registry import KINDS
from entrenar.autograd.weight_types import WEIGHT_TYPES
from entrenar.models.families import FAMILIES
from entrenar.models.rotary import SCALING_TYPES

from .sources import ROOT, text

pytestmark = pytest.mark.architecture
PAGE = text(ROOT / "docs" / "formats.md")


def table(title: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    section = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section, title
    rows = [line for line in section[1].splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows[2:]]


def facts(title: str) -> dict[str, tuple[str, ...]]:
    """The columns of a table that the code gives, by the first."""
    width = {"Rotary embeddings": 1, "Weight types": 3}.get(title, 2)
    return {row[0]: tuple(row[1:width]) for row in table(title)}


EXPECTED: dict[str, dict[str, tuple[str, ...]]] = {
    "Families": {name: (family.architecture,) for name, family in FAMILIES.items()},
    "Rotary embeddings": dict.fromkeys(("default", *SCALING_TYPES), ()),
    "Weight types": {
        row.name: (row.gguf_name or "no", f"{round(float(8 * row.bytes_per_weight()), 2):g}")
        for row in WEIGHT_TYPES.values()
    },
    "Adapters": {name: (kind.peft.peft_type,) for name, kind in KINDS.items()},
}


@pytest.mark.parametrize("title", EXPECTED)
def test_the_table_is_that_of_the_code(title: str) -> None:
    found, expected = facts(title), EXPECTED[title]
    wrong = [f"a row is missing: | `{name}` | {' | '.join(row)} | ..." for name, row in expected.items()
             if found.get(name) != row]  # fmt: skip
    wrong += [f"the code has no {name}" for name in found if name not in expected]
    assert not wrong, f"docs/formats.md, {title}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("title", EXPECTED)
def test_no_row_stands_twice_and_none_is_short(title: str) -> None:
    rows = table(title)
    assert len({row[0] for row in rows}) == len(rows)
    assert len({len(row) for row in rows}) == 1
