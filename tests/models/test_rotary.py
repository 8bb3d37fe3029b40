"""Rotary angles: finite at every position, or refused before a model is made."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entrenar.autograd import rope_table
from entrenar.errors import ConfigError
from entrenar.llama import LLaMAConfig
from entrenar.models.rotary import inverse_frequencies

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


YARN = {"rope_type": "yarn", "factor": 2.0}
LONG = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "mrope", "factor": 2.0}, "rope_type is 'mrope', which is not supported"),
        ({"rope_theta": 1e4, "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; partial rotation is not"),
        ({"rope_type": "dynamic"}, "rope_scaling.factor is missing, expected a positive number where"),
        ({"rope_type": "dynamic", "factor": -1}, "rope_scaling.factor is -1, expected a positive number where"),
        ({"type": "yarn", "factor": None}, None),
        ({"rope_type": "yarn"}, "rope_scaling.factor is missing, expected a positive number where"),
        (YARN | {"original_max_position_embeddings": 0}, "original_max_position_embeddings is 0, expected a positive"),
        (YARN | {"beta_fast": 1, "beta_slow": 2}, "beta_fast is 1, expected more than beta_slow = 2"),
        (YARN | {"beta_fast": 0.5}, "beta_fast is 0.5, expected more than beta_slow = 1"),
        (YARN | {"truncate": 1}, "rope_scaling.truncate is 1, expected true or false"),
        (YARN | {"attention_factor": "1"}, "rope_scaling.attention_factor is '1', expected a positive number"),
        (YARN | {"attention_factor": None, "mscale": None}, None),
        (LONG, None),
        (LONG | {"long_factor": 2}, "rope_scaling.long_factor is 2, expected a list of positive numbers where"),
        (
            LONG | {"short_factor": [1.0]},
            "rope_scaling.short_factor is [1.0], expected 8 positive numbers, one for each",
        ),
        (LONG | {"short_factor": [0.0] * 8}, "expected 8 positive numbers, one for each rotated pair"),
        ({"rope_type": "longrope", "long_factor": [2.0] * 8}, "rope_scaling.short_factor is missing"),
        (LONG | {"original_max_position_embeddings": 1}, "original_max_position_embeddings is 1, expected at least 2"),
    ],
)
def test_scaling_that_lacks_a_number_is_refused_by_its_name(scaling: dict[str, Any], message: str | None) -> None:
    table = hf_table(small_config()) | {"rope_scaling": scaling}
    if message is None:
        assert LLaMAConfig.from_hf(table).rope_scaling is not None
        return
    with pytest.raises(ConfigError, match=re.escape(message)):
        LLaMAConfig.from_hf(table)


@pytest.mark.parametrize(
    ("scaling", "alike", "apart"),
    [
        (None, (0, 64), None),
        ({"rope_type": "linear", "factor": 2.0}, (0, 64), None),
        (YARN | {"original_max_position_embeddings": 32}, (0, 64), None),
        (LONG | {"original_max_position_embeddings": 20}, (21, 64), (20, 21)),
        ({"rope_type": "dynamic", "factor": 2.0}, (0, 64), (65, 66)),
    ],
    ids=["none", "linear", "yarn", "longrope", "dynamic"],
)
def test_the_span_says_which_lengths_are_rotated_alike(
    scaling: dict[str, Any] | None, alike: tuple[int, int], apart: tuple[int, int] | None
) -> None:
    config = small_config(rope_scaling=scaling)

    def same(lengths: tuple[int, int]) -> bool:
        first, second = (config.rotation(length).frequencies for length in lengths)
        return bool(np.array_equal(first, second))

    assert same(alike) and config.rotary_span(alike[0]) == config.rotary_span(alike[1])
    assert apart is None or (not same(apart) and config.rotary_span(apart[0]) != config.rotary_span(apart[1]))


def test_dynamic_and_yarn_scaling_stretch_the_context() -> None:
    assert small_config(rope_scaling={"rope_type": "dynamic", "factor": 2.5}).context == 160
    assert small_config(rope_scaling=YARN | {"original_max_position_embeddings": 64}).context == 128
    assert small_config(rope_scaling=YARN | {"original_max_position_embeddings": 16}).context == 64
    assert small_config(rope_scaling={"rope_type": "linear", "factor": 4.0}).context == 64


def test_factors_of_a_file_divide_the_frequencies_one_by_one() -> None:
    plain = 500.0 ** -(np.arange(0, 8, 2) / 8)
    np.testing.assert_allclose(inverse_frequencies(8, 500.0, None, [1.0, 2.0, 4.0, 32.0]), plain / [1, 2, 4, 32], 1e-14)
    halved = inverse_frequencies(8, 500.0, {"rope_type": "linear", "factor": 2.0}, [1.0, 2.0, 4.0, 32.0])
    np.testing.assert_allclose(halved, plain / [2, 4, 8, 64], 1e-14)
