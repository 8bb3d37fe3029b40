"""Counters by shape and phase, their bounded table, and the watched thread's time outside of kernels."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from entrenar._kernels import cpu, profile
from entrenar.autograd import QuantizedTensor, Tensor, no_grad, ops
from entrenar.autograd.precision import matmul_precision

from .test_profile import leaf

pytestmark = pytest.mark.unit
Shape = tuple[int, ...] | None


@pytest.fixture(autouse=True)
def counted() -> Iterator[None]:
    profile.reset()
    profile.enable()
    yield
    profile.watch(False)
    profile.set_phase("")
    profile.disable()
    profile.reset()


def calls() -> dict[tuple[str, Shape], int]:
    found: dict[tuple[str, Shape], int] = {}
    for (kernel, _, extents, _, _), (count, *_) in profile.shapes():
        found[kernel, extents] = found.get((kernel, extents), 0) + count
    return found


def test_each_shape_of_a_kernel_is_counted_by_itself() -> None:
    with no_grad():
        for _ in range(3):
            ops.softmax(leaf(7, 100))
        ops.softmax(leaf(2, 5, 100))
        ops.exp(leaf(30))
    assert calls() == {
        ("softmax_forward", (7, 100)): 3,
        ("softmax_forward", (10, 100)): 1,
        ("activation_forward", (30,)): 1,
    }


def test_a_product_has_its_rows_columns_contraction_weight_type_and_arithmetic() -> None:
    w = QuantizedTensor.quantize(leaf(80, 96).numpy(), "q4_1")
    with no_grad():
        for name in ("highest", "high"):
            with matmul_precision(name):
                ops.linear(leaf(50, 96), w)
    found = {key for key, _ in profile.shapes()}
    wanted = {("linear_forward", "", (50, 80, 96), "q4_1", "fp32")}
    if cpu.effective_precision("high") == "high":
        wanted.add(("linear_forward", "", (50, 80, 96), "q4_1", "int16"))
    assert found == wanted


def test_adapters_have_their_rank() -> None:
    x, w, a, b = leaf(50, 96), Tensor(np.ones((80, 96), np.float32)), leaf(8, 96), leaf(80, 8)
    ops.lora_linear(x, w, a, b, 0.5).backward(Tensor(np.ones((50, 80), np.float32)))
    assert calls()["skinny_forward", (50, 80, 96, 8)] == 1
    assert calls()["skinny_backward", (50, 80, 96, 8)] == 1


def test_shapes_without_room_count_together_and_the_sum_stays_exact() -> None:
    with no_grad():
        for size in range(1, 301):
            ops.exp(leaf(size))
    found = {key: amounts for key, amounts in profile.shapes() if key[0] == "activation_forward"}
    others = [amounts for key, amounts in found.items() if key[2] is None]
    assert len(found) == 129
    assert len(others) == 1
    assert others[0][0] == 300 - 128
    assert sum(amounts[2] for amounts in found.values()) == sum(range(1, 301))
    assert profile.counters()["activation_forward"][::2] == (300, sum(range(1, 301)))


def test_phases_are_kept_apart_and_summed_by_counters() -> None:
    with no_grad():
        before = profile.set_phase("forward")
        ops.exp(leaf(5))
        assert profile.set_phase(before) == "forward"
        ops.exp(leaf(5))
    assert {key[1]: amounts[0] for key, amounts in profile.shapes()} == {"": 1, "forward": 1}
    assert profile.counters()["activation_forward"][0] == 2


def test_more_phases_than_there_is_room_for_count_as_none() -> None:
    for number in range(40):
        profile.set_phase(f"phase {number}")
    assert profile.set_phase("") == ""


def test_kernels_and_the_time_outside_of_them_sum_to_the_time_that_passed() -> None:
    with no_grad():
        x = leaf(200, 1000)
        started = time.perf_counter()
        profile.watch(True)
        for _ in range(20):
            ops.softmax(x)
            sum(range(1000))
        profile.set_phase("asleep")
        time.sleep(0.02)
        profile.watch(False)
        wall = time.perf_counter() - started
    seconds, cpu_seconds = profile.outside()["asleep"]
    inside = profile.counters()["softmax_forward"][1]
    total = inside + sum(outside for outside, _ in profile.outside().values())
    assert 0.95 * wall <= total <= wall
    assert seconds >= 0.02
    assert cpu_seconds < seconds / 2  # it waited


def test_kernels_of_threads_that_are_not_watched_are_told_apart() -> None:
    def work() -> None:
        with no_grad():
            ops.softmax(leaf(100, 100))

    profile.watch(True)
    work()
    assert profile.elsewhere() == 0
    other = threading.Thread(target=work)
    other.start()
    other.join()
    assert 0 < profile.elsewhere() < profile.counters()["softmax_forward"][1]


def test_shapes_counted_by_many_threads_at_once_lose_no_call() -> None:
    def work() -> None:
        with no_grad():
            for size in range(1, 101):
                ops.exp(leaf(size))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls() == {("activation_forward", (size,)): 4 for size in range(1, 101)}
