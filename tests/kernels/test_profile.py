"""Counters of kernels: exact for a known graph, off without a trace, safe from several threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from entrenar._kernels import profile
from entrenar.autograd import QuantizedTensor, Tensor, no_grad, ops
from entrenar.optim import SGD

pytestmark = pytest.mark.unit


@pytest.fixture
def counted() -> Iterator[None]:
    profile.reset()
    profile.enable()
    yield
    profile.disable()
    profile.reset()


def leaf(*shape: int) -> Tensor:
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return Tensor(values, requires_grad=True)


def amounts() -> dict[str, tuple[int, int, int]]:
    """Calls, FLOPs and bytes; the seconds are no function of the graph."""
    return {name: (calls, flops, read) for name, (calls, _, flops, read) in profile.counters().items()}


def test_nothing_is_counted_while_counting_is_off() -> None:
    profile.reset()
    assert not profile.enabled()
    ops.silu(leaf(5)).backward(Tensor(np.ones(5, np.float32)))
    assert profile.counters() == {}


def test_counting_changes_no_result() -> None:
    def results() -> list[bytes]:
        x, w = leaf(3, 40), leaf(50, 40)
        y = ops.silu(ops.linear(ops.rms_norm(x, Tensor(np.ones(40, np.float32))), w))
        y.backward(Tensor(np.ones((3, 50), np.float32)))
        assert x.grad is not None
        assert w.grad is not None
        return [part.numpy().tobytes() for part in (y, x.grad, w.grad)]

    off = results()
    profile.enable()
    try:
        assert results() == off
    finally:
        profile.disable()
        profile.reset()


@pytest.mark.usefixtures("counted")
def test_elementwise_kernels_count_their_elements() -> None:
    x = leaf(7, 100)
    ops.silu(x).backward(Tensor(np.ones((7, 100), np.float32)))
    found = amounts()
    assert found["activation_forward"] == (1, 700, 8 * 700)
    assert found["activation_backward"] == (1, 2 * 700, 12 * 700)


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("causal", [True, False])
def test_attention_counts_the_pairs_that_see_each_other(causal: bool) -> None:
    q, k, v = leaf(2, 33, 4, 16), leaf(2, 40, 2, 16), leaf(2, 40, 2, 16)
    ops.attention(q, k, v, causal=causal).backward(Tensor(np.ones((2, 33, 4, 16), np.float32)))
    pairs = 2 * 4 * sum(8 + i if causal else 40 for i in range(33))
    operands = 4 * 2 * (2 * 33 * 4 * 16 + 2 * 40 * 2 * 16)
    assert amounts()["attention_forward"] == (1, 4 * pairs * 16, operands)
    assert amounts()["attention_backward"] == (1, 10 * pairs * 16, 2 * operands)


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize("m", [2, 50])  # gemv and GEMM
def test_linear_counts_two_flops_a_multiply_add(m: int) -> None:
    x, w = leaf(m, 96), leaf(80, 96)
    ops.linear(x, w).backward(Tensor(np.ones((m, 80), np.float32)))
    product, operands = 2 * m * 96 * 80, 4 * (m * 96 + m * 80 + 96 * 80)
    found = amounts()
    assert found["linear_forward"] == (1, product, operands)
    assert found["linear_backward_input"] == (1, product, operands)
    assert found["linear_backward_weight"] == (1, product, operands)


@pytest.mark.usefixtures("counted")
@pytest.mark.parametrize(("weight_type", "nbytes"), [("q4_1", 80 * 96 // 32 * 20), ("q8_0", 80 * 96 // 32 * 34)])
def test_quantized_weights_count_the_bytes_that_they_have(weight_type: str, nbytes: int) -> None:
    w = QuantizedTensor.quantize(leaf(80, 96).numpy(), weight_type)
    profile.reset()
    ops.linear(leaf(50, 96), w)
    assert amounts()["linear_forward"] == (1, 2 * 50 * 96 * 80, 4 * 50 * (96 + 80) + nbytes)


@pytest.mark.usefixtures("counted")
def test_matmul_is_one_kernel_and_grouped_products_are_one() -> None:
    with no_grad():
        ops.matmul(leaf(20, 30), leaf(30, 40))
        ops.grouped_linear(leaf(50, 96), [leaf(64, 96), leaf(32, 96)])
    found = amounts()
    assert found["matmul"] == (1, 2 * 20 * 30 * 40, 4 * (20 * 40 + 20 * 30 + 30 * 40))
    assert found["linear_forward"] == (1, 2 * 50 * 96 * 96, 4 * (50 * (96 + 96) + 96 * 96))


@pytest.mark.usefixtures("counted")
def test_adapters_are_skinny_products() -> None:
    m, k, n, r = 50, 96, 80, 8
    x, w, a, b = leaf(m, k), Tensor(np.ones((n, k), np.float32)), leaf(r, k), leaf(n, r)
    ops.lora_linear(x, w, a, b, 0.5).backward(Tensor(np.ones((m, n), np.float32)))
    found = amounts()
    assert found["linear_forward"][:2] == (1, 2 * m * n * k)
    assert found["skinny_forward"][:2] == (1, 2 * m * r * (k + n))
    assert found["skinny_backward"][:2] == (1, 4 * m * r * n)
    assert found["skinny_backward_a"][:2] == (1, 2 * m * r * k)
    assert found["skinny_backward_input"][:2] == (1, 2 * m * r * k)


@pytest.mark.usefixtures("counted")
def test_optimizer_steps_and_norms_are_counted() -> None:
    x, w = leaf(6, 32), leaf(32)
    ops.rms_norm(x, w).backward(Tensor(np.ones((6, 32), np.float32)))
    SGD([x, w], lr=0.1).step()
    found = amounts()
    assert found["rms_norm_forward"] == (1, 4 * 192, 8 * 192)
    assert found["rms_norm_backward"] == (1, 9 * 192, 12 * 192)
    assert found["sgd_step"] == (1, 6 * 224, 20 * 224)


@pytest.mark.usefixtures("counted")
def test_seconds_are_those_of_the_calls_and_reset_forgets() -> None:
    with no_grad():
        for _ in range(10):
            ops.softmax(leaf(100, 1000))
    calls, seconds, _, _ = profile.counters()["softmax_forward"]
    assert calls == 10
    assert 0 < seconds < 10
    profile.reset()
    assert profile.counters() == {}


@pytest.mark.usefixtures("counted")
def test_calls_of_every_thread_are_counted() -> None:
    def work() -> None:
        x = leaf(9)
        with no_grad():
            for _ in range(200):
                ops.exp(x)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert amounts()["activation_forward"] == (800, 800 * 9, 800 * 72)
