"""Random graphs of ops against a reverse mode in float64 NumPy; the fuzzer of the same graphs is fuzz/tensor_ops.py."""

from __future__ import annotations

import random

import pytest
from calls import check_call
from graphs import check_graph, random_graph
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.property
@pytest.mark.gradient
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_values_and_gradients_agree_with_float64(data: st.DataObject) -> None:
    check_graph(lambda n: data.draw(st.integers(0, n - 1)))


@pytest.mark.unit
def test_the_choices_alone_make_the_graph() -> None:
    def value(seed: int) -> float:
        rng = random.Random(seed)
        return random_graph(rng.randrange)[1][0].item()

    first = [value(seed) for seed in range(30)]
    assert [value(seed) for seed in range(30)] == first


@pytest.mark.property
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_calls_that_do_not_fit_are_refused_and_the_others_agree_with_numpy(data: st.DataObject) -> None:
    check_call(lambda n: data.draw(st.integers(0, n - 1)))
