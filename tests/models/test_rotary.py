"""Rotary angles: finite at every position, or refused before a model is made."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.autograd import rope_table
from entrenar.errors import ConfigError
from entrenar.llama import LLaMAConfig

from .builders import hf_table, small_config
from .test_config import LLAMA3_SCALING

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"head_dim": 64, "rope_theta": 1e-300, "max_position_embeddings": 2**60}, "rope_theta"),
        ({"head_dim": 64, "rope_theta": 5e-324}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 1e-320}}, "rope_scaling"),
        ({"rope_theta": 1e-200, "rope_scaling": {"rope_type": "linear", "factor": 1e-200}}, "rope_scaling"),
        ({"rope_scaling": LLAMA3_SCALING | {"factor": 1e-320}}, "rope_scaling"),
        ({"rope_scaling": LLAMA3_SCALING | {"factor": 1e-307}}, "rope_scaling"),
    ],
)
def test_rotary_angles_that_are_not_finite_are_refused(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"model\.{named} is .*, with which rotary angles are not finite"):
        small_config(**changes)
    (tmp_path / "config.json").write_text(json.dumps(hf_table(small_config()) | changes))
    with pytest.raises(ConfigError, match=rf"config\.json: {named} is .*, with which rotary angles are not finite"):
        LLaMAConfig.from_hf(tmp_path / "config.json")


@pytest.mark.unit
@pytest.mark.parametrize("theta", [1e300, 1e308, 1e-100])
def test_extreme_bases_whose_angles_are_finite_make_finite_tables(theta: float) -> None:
    config = small_config(rope_theta=theta)
    for table in rope_table(config.max_position_embeddings, config.inverse_frequencies()):
        assert np.isfinite(table.numpy()).all()


def test_a_head_of_any_size_is_checked_without_memory() -> None:
    tracemalloc.start()
    config = small_config(head_dim=2**40, num_attention_heads=2, num_key_value_heads=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert config.num_parameters() > 2**47 and peak < 1e6
