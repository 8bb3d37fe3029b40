"""The machine's measured peak: what it counts is exact, and no kernel is faster than it."""

from __future__ import annotations

import numpy as np
import pytest

from entrenar._kernels import cpu, peak
from entrenar.observe.peak import Peak, aligned, machine_peak

pytestmark = pytest.mark.unit


def test_work_is_counted_by_threads_and_rounds() -> None:
    one = peak.multiply_adds("fp32", 1, 1000)
    assert one == 2 * 12 * cpu.vector_floats() * 1000
    assert peak.multiply_adds("fp32", 2, 1000) == 2 * one


@pytest.mark.parametrize("tier", cpu.supported_tiers())
def test_each_tier_has_the_rates_of_its_instructions(tier: str) -> None:
    before = cpu.tier()
    cpu.set_tier(tier)
    try:
        found = {name: peak.multiply_adds(name, 1, 10) for name in peak.RATES}
    finally:
        cpu.set_tier(before)
    assert found["fp32"] > 0
    assert (found["int16"] > 0) == (tier != "base")
    assert found["int8"] == (4 * found["fp32"] if tier == "v4i" else 0)


def test_streams_compute_what_they_say_at_any_length() -> None:
    for n in (64, 16384, 16384 + 192):
        x, y, z = (aligned(4 * n) for _ in range(3))
        x[...], y[...], z[...] = np.arange(n), 3, np.arange(n)[::-1]
        pointers = [array.ctypes.data for array in (x, y, z)]
        assert peak.stream("update", 2, *pointers, n) == 12 * n
        np.testing.assert_array_equal(x, np.arange(n, dtype=np.float32) / 2 + 3)
        assert peak.stream("triad", 2, *pointers, n) == 12 * n
        np.testing.assert_array_equal(x, z / 2 + 3)
        assert peak.stream("read", 2, *pointers, n) == 4 * n


def test_arrays_are_aligned_to_the_widest_vector() -> None:
    for nbytes in (256, 4096, 100_096):
        assert aligned(nbytes).ctypes.data % 64 == 0
        assert aligned(nbytes).nbytes == nbytes


def test_a_process_measures_once_and_again_keeps_the_larger() -> None:
    first = machine_peak(1)
    assert machine_peak(1) is first
    again = machine_peak(1, again=True)
    assert again.fp32 >= first.fp32
    assert again.read >= first.read
    assert (first.tier, first.threads) == (cpu.tier(), 1)


def test_the_best_of_two_is_taken_figure_by_figure() -> None:
    a, b = Peak("v4i", 2, 100, 200, 400, 10), Peak("v4i", 2, 110, 190, 0, 20)
    assert a.best(b) == Peak("v4i", 2, 110, 200, 400, 20)
