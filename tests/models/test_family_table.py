"""Every family against transformers, PEFT and llama.cpp; `make family-table` prints what these tests measure."""

from __future__ import annotations

import pytest

from entrenar.models.families import FAMILIES

from .family_cases import CASES, CHECKS, run

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")
pytest.importorskip("xllamacpp")


pytestmark = pytest.mark.peers


@pytest.mark.parametrize(("case", "check"), [(case, check) for case in CASES for check in CHECKS])
def test_a_family_passes_a_check(case: str, check: str) -> None:
    run(case, check)


def test_every_family_has_a_case() -> None:
    assert {case.model_type for case in CASES.values()} == set(FAMILIES)
