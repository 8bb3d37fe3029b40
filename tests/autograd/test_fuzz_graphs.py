"""Random graphs of ops against a reverse mode in float64 NumPy; the fuzzer of the same graphs is fuzz/tensor_ops.py."""

from __future__ import annotations

import pytest
from graphs import check_graph
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.property
@pytest.mark.gradient
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_values_and_gradients_agree_with_float64(data: st.DataObject) -> None:
    check_graph(lambda n: data.draw(st.integers(0, n - 1)))
