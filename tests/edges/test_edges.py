"""Every variation is equal to its reference or refused by name, and docs/edges.md says which."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")  # with the peers extra all the references are there

from .areas import all_variations
from .harness import Variation
from .table import VERDICTS, table_kinds

pytestmark = pytest.mark.peers
PAGE = Path(__file__).parents[2] / "docs" / "edges.md"
VARIATIONS = all_variations()


@pytest.mark.parametrize("variation", VARIATIONS, ids=[variation.id for variation in VARIATIONS])
def test_variation(variation: Variation, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    verdict = variation.check(tmp_path)
    request.config.stash.setdefault(VERDICTS, []).append((variation, verdict))
    if not request.config.getoption("--edges-table", None):
        assert table_kinds(PAGE).get(variation.id) == verdict.kind, "run `make edges` and look at what changed"


def test_the_page_has_every_variation_and_no_other() -> None:
    assert set(table_kinds(PAGE)) == {variation.id for variation in VARIATIONS}
