"""Checksums of tensors: what they are, that nothing changes them, and that they say where two tensors differ."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from entrenar._kernels import cpu
from entrenar.autograd import Tensor, add, bits, checkpoint, linear, rms_norm
from entrenar.autograd.tape import watching_ops
from entrenar.errors import ConfigError, ShapeError

pytestmark = pytest.mark.unit
SIZES = [0, 1, 2, 15, 4095, 4097, 70001, 1_100_003]


def random(size: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(size).astype(np.float32))


@pytest.fixture
def settings() -> Iterator[None]:
    threads, tier = cpu.get_num_threads(), cpu.tier()
    yield
    cpu.set_num_threads(threads)
    cpu.set_tier(tier)


def mixed(words: np.ndarray) -> int:
    x = (words ^ (np.arange(words.size, dtype=np.uint64) * 0x9E3779B1 & 0xFFFFFFFF)) & 0xFFFFFFFF
    x = ((x ^ x >> np.uint64(15)) * 0x2C1B3C6D) & 0xFFFFFFFF
    x ^= x >> np.uint64(12)
    return int((x * x).sum(dtype=np.uint64))


@pytest.mark.usefixtures("settings")
@pytest.mark.parametrize("size", SIZES)
def test_the_sums_are_the_formula_s_in_every_tier_and_with_any_number_of_threads(size: int) -> None:
    tensor = random(size)
    words = tensor.numpy().view(np.uint32).astype(np.uint64)
    weighted = (words * np.arange(1, size + 1, dtype=np.uint64)).sum(dtype=np.uint64)  # modulo 2**64
    expected = int(words.sum()), int(weighted), mixed(words)
    for tier in cpu.supported_tiers():
        for threads in (1, 2, 3):
            cpu.set_tier(tier)
            cpu.set_num_threads(threads)
            assert bits.digest(tensor) == expected


@pytest.mark.parametrize("size", SIZES[1:])
def test_one_different_element_is_found_with_its_difference(size: int) -> None:
    rng = np.random.default_rng(size)
    for bit in range(32):
        tensor = random(size, bit)
        before, element = bits.digest(tensor), int(rng.integers(size))
        word = bits.word(tensor, element)
        bits.flip(tensor, element, bit)
        after = bits.digest(tensor)
        assert bits.word(tensor, element) == word ^ 1 << bit
        assert bits.single_difference(after, before) == (element, (word ^ 1 << bit) - word)
        assert bits.is_single(after, before, element, (word ^ 1 << bit) - word, word)


def test_two_different_elements_are_never_taken_for_one_alone() -> None:
    rng = np.random.default_rng(0)
    candidates = 0
    for trial in range(300):
        tensor = Tensor(np.ones(1000))
        first, second = (int(i) for i in rng.choice(1000, 2, replace=False))
        before = bits.digest(tensor)
        for element in (first, second):  # by the same amount in half of the trials: the sums are those of one between
            bits.flip(tensor, element, 5 if trial % 2 else int(rng.integers(32)))
        after = bits.digest(tensor)
        assert after != before
        found = bits.single_difference(after, before)
        if found is not None and found[0] < 1000:
            candidates += 1
            assert not bits.is_single(after, before, *found, bits.word(Tensor(np.ones(1)), 0))
    assert candidates > 50


def test_equal_tensors_have_no_difference_and_zeros_of_both_signs_are_not_equal() -> None:
    zero, minus = Tensor(np.zeros(5)), Tensor(-np.zeros(5))
    assert bits.single_difference(bits.digest(zero), bits.digest(zero)) is None
    assert bits.digest(zero) != bits.digest(minus)


def test_what_is_no_element_or_no_float32_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"element is 5, expected one of 5"):
        bits.word(random(5), 5)
    with pytest.raises(ShapeError, match=r"bit is 32"):
        bits.flip(random(5), 0, 32)
    with pytest.raises(ConfigError, match="bfloat16"):
        bits.digest(Tensor([1.0], dtype="bfloat16"))


class Watcher:
    def __init__(self) -> None:
        self.seen: list[tuple[str, ...]] = []

    def on_output(self, op: str, weight: object, output: Tensor, node: int) -> None:
        self.seen.append(("output", op))
        bits.digest(output)

    def on_gradient(self, kind: str, node: int, index: int, gradient: Tensor) -> None:
        self.seen.append(("gradient", kind, str(index)))

    def on_recomputed(self, kind: str, node: int, output: Tensor) -> None:
        self.seen.append(("recomputed", kind))


def graph() -> bytes:
    x, w = Tensor(np.ones((2, 3)), requires_grad=True), Tensor(np.full((3, 3), 0.5), requires_grad=True)
    scale = Tensor(np.ones(3))
    y = checkpoint(lambda x: add(x, linear(rms_norm(x, scale), w)), x)
    y.backward(Tensor(np.ones((2, 3))))
    assert w.grad is not None
    return w.grad.numpy().tobytes()


def test_operations_are_shown_in_order_and_do_not_change() -> None:
    plain, watcher = graph(), Watcher()
    with watching_ops(watcher):
        assert graph() == plain
    forward = [("output", "rms_norm"), ("output", "linear"), ("output", "add")]
    assert watcher.seen[:6] == forward * 2  # and again in the backward of checkpoint
    assert ("gradient", "LinearNode", "1") in watcher.seen
    assert ("recomputed", "RMSNormNode") in watcher.seen
    count = len(watcher.seen)
    graph()
    assert len(watcher.seen) == count


def test_several_watchers_hear_what_they_have_methods_for_in_their_own_thread() -> None:
    class Nodes:
        def __init__(self) -> None:
            self.seen: list[tuple[str, ...]] = []

        def on_output(self, op: str, weight: object, output: Tensor, node: int) -> None:
            self.seen.append(("output", op))

        def on_checkpoint(self, node: int) -> None:
            self.seen.append(("checkpoint",))

        def on_node(self, kind: str, node: int) -> None:
            self.seen.append(("begin", kind))

        def on_node_end(self, kind: str, node: int) -> None:
            self.seen.append(("end", kind))

        def on_backward_end(self, error: BaseException | None) -> None:
            self.seen.append(("over", repr(error)))

    plain, outer, inner = graph(), Watcher(), Nodes()
    with watching_ops(outer), watching_ops(inner):
        assert graph() == plain
        count = len(outer.seen), len(inner.seen)
        worker = threading.Thread(target=graph)
        worker.start()
        worker.join()
        assert (len(outer.seen), len(inner.seen)) == count
        with watching_ops(inner):
            pass
        add(1.0, 2.0)
    assert outer.seen[-1] == inner.seen[-1] == ("output", "add")
    forward = [("output", "rms_norm"), ("output", "linear"), ("output", "add")]
    walked = [(when, kind) for kind in ("BinaryNode", "LinearNode", "RMSNormNode") for when in ("begin", "end")]
    again = [("begin", "CheckpointNode"), *forward, *walked, ("end", "CheckpointNode")]
    assert inner.seen[:-1] == [*forward, ("checkpoint",), *again, ("over", "None")]


def test_a_watcher_s_error_is_the_operation_s() -> None:
    class Raises(Watcher):
        def on_output(self, op: str, weight: object, output: Tensor, node: int) -> None:
            raise ValueError(op)

    with pytest.raises(ValueError, match="add"), watching_ops(Raises()):
        add(1.0, 2.0)
    assert add(1.0, 2.0).item() == 3.0
