"""Tensor memory: blocks that are used again, graphs that leave nothing behind, and operations that hold little."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import numpy as np
import psutil
import pytest

from entrenar import autograd
from entrenar.autograd import Tensor, checkpoint, empty_cache, memory_stats, no_grad, reset_peak_memory
from entrenar.optim import AdamW

MIB = 1 << 20
pytestmark = pytest.mark.memory


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Rubbish of other tests is gone before, and the collector off: what is freed is freed by reference counts."""
    gc.collect()
    empty_cache()
    reset_peak_memory()
    gc.disable()
    yield
    gc.enable()


def in_use() -> int:
    return memory_stats()["in_use"]


def zeros(*shape: int, requires_grad: bool = False) -> Tensor:
    return Tensor.from_numpy(np.zeros(shape, np.float32), requires_grad=requires_grad)  # not the allocator's memory


def peak_of(run: Callable[[], object]) -> int:
    """Bytes of tensors that `run` held at its worst moment, beyond what was held before."""
    before = in_use()
    reset_peak_memory()
    run()
    return memory_stats()["peak"] - before


# ---------------------------------------------------------------------------------- the allocator
@pytest.mark.parametrize("nbytes", [4, 64, 68, 1000, 4096, 65_540, MIB - 4, MIB, 5_000_000, 33 * MIB])
def test_a_block_is_at_most_an_eighth_larger_than_asked(nbytes: int) -> None:
    before = in_use()
    tensor = Tensor.empty(nbytes // 4)
    taken = in_use() - before
    assert nbytes <= taken <= max(64, nbytes * 9 // 8 + 4096 * (nbytes >= MIB) + 64)
    del tensor
    assert in_use() == before


@pytest.mark.parametrize("again", ["rms_norm", "swiglu"])
def test_what_is_cheap_to_compute_again_is_not_kept_and_released_after_use(again: str) -> None:
    x, w = (Tensor(np.ones((256, 256)), requires_grad=True) for _ in range(2))
    size, ones = 4 * 256 * 256, Tensor(np.ones(256))
    before = in_use()
    inner = autograd.rms_norm(x, ones) if again == "rms_norm" else autograd.swiglu(x, x)
    outs = [autograd.linear(inner, w) for _ in range(3)]
    del inner
    assert in_use() - before < 3.5 * size, "the three outputs, and not what they read"
    total = outs[0].sum() + outs[1].sum() + outs[2].sum()
    del outs
    total.backward()
    assert w.grad is not None
    del total
    assert in_use() - before < 2.5 * size, "the two gradients"


def test_a_freed_block_serves_the_next_tensor_of_its_size() -> None:
    for size in (10, 10_000, 3_000_000):
        first = Tensor.empty(size)
        address = first.numpy().ctypes.data
        del first
        cached = memory_stats()["cached"]
        assert cached >= 4 * size
        second = Tensor.empty(size)
        assert second.numpy().ctypes.data == address
        assert memory_stats()["cached"] <= cached - 4 * size


def test_a_free_block_that_is_up_to_half_larger_serves_before_new_memory() -> None:
    first = Tensor.empty(12, MIB // 4)
    address = first.numpy().ctypes.data
    del first
    assert Tensor.empty(6, MIB // 4).numpy().ctypes.data != address
    held = memory_stats()["cached"]
    near = Tensor.empty(9, MIB // 4)
    assert near.numpy().ctypes.data == address and memory_stats()["cached"] == held - 12 * MIB
    del near
    assert memory_stats()["cached"] == held


def test_stats_count_what_is_used_cached_and_the_peak() -> None:
    before = memory_stats()
    tensors = [Tensor.empty(1024, 1024) for _ in range(3)]
    assert memory_stats()["in_use"] - before["in_use"] == 12 * MIB
    del tensors[1:]
    after = memory_stats()
    assert after["in_use"] - before["in_use"] == 4 * MIB
    assert after["cached"] - before["cached"] == 8 * MIB
    assert after["peak"] - before["in_use"] == 12 * MIB
    reset_peak_memory()
    assert memory_stats()["peak"] == after["in_use"]


def test_empty_cache_gives_the_memory_back_to_the_system() -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    tensors = [Tensor.empty(8, MIB // 4) for _ in range(16)]
    for tensor in tensors:
        tensor.numpy()[:] = 1
    del tensor, tensors
    assert memory_stats()["cached"] >= 128 * MIB
    assert process.memory_info().rss - before > 100 * MIB
    empty_cache()
    assert memory_stats()["cached"] == 0
    assert process.memory_info().rss - before < 20 * MIB


def test_a_step_finds_its_blocks_again_after_a_phase_of_other_sizes() -> None:
    blocks = [Tensor.empty(8, MIB // 4) for _ in range(40)]
    most = memory_stats()["in_use"]
    del blocks
    for size in (3, 5, 7):  # an evaluation, which holds little
        Tensor.empty(size, MIB // 4)
    held = memory_stats()
    assert held["cached"] > 300 * MIB
    assert held["cached"] + held["in_use"] <= most, "nor more than there was"


def test_sizes_that_never_come_back_do_not_pile_up() -> None:
    for step in range(400):
        Tensor.empty(MIB // 4 + step * 16_384)  # 1 to 26 MiB, 5 GiB in all
        assert memory_stats()["cached"] < 100 * MIB


def test_views_keep_their_block_and_no_more() -> None:
    before = in_use()
    x = Tensor.empty(MIB)
    view, flat, array = memoryview(x), x.reshape(1024, 1024), x.numpy()[5:]
    del x
    assert in_use() - before == 4 * MIB
    del view, flat
    assert in_use() - before == 4 * MIB
    del array
    assert in_use() == before


def test_memory_taken_by_others_is_not_counted() -> None:
    before = in_use()
    tensor = zeros(1024, 1024)
    assert in_use() == before
    assert tensor.nbytes == 4 * MIB


# ---------------------------------------------------------------------------------- graphs
class Net:
    """Embedding, one of everything that a decoder layer has, a fused head."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        shapes = {
            "embed": (64, 32),
            "qkv": (96, 32),
            "out": (32, 32),
            "gate": (48, 32),
            "up": (48, 32),
            "down": (32, 48),
        }
        self.w = {k: Tensor(rng.standard_normal(s) * 0.1, requires_grad=True) for k, s in shapes.items()}
        self.norm = Tensor(np.ones(32), requires_grad=True)
        self.a = Tensor(rng.standard_normal((4, 32)), requires_grad=True)
        self.b = Tensor(rng.standard_normal((32, 4)), requires_grad=True)
        self.table = autograd.rope_table(64, np.ones(4))
        self.parameters = [*self.w.values(), self.norm, self.a, self.b]

    def block(self, x: Tensor) -> Tensor:
        length = x.shape[0]
        qkv = autograd.linear(autograd.rms_norm(x, self.norm), self.w["qkv"]).reshape(1, length, 12, 8)
        q, k = (autograd.rope(qkv[:, :, start : start + 4], *self.table) for start in (0, 4))
        mixed = autograd.attention(q, k, qkv[:, :, 8:]).reshape(length, 32)
        x = x + autograd.lora_linear(mixed, self.w["out"], self.a, self.b, 2.0, dropout=0.1)
        hidden = autograd.rms_norm(x, self.norm)
        gated = autograd.swiglu(autograd.linear(hidden, self.w["gate"]), autograd.linear(hidden, self.w["up"]))
        return x + autograd.dropout(autograd.linear(gated, self.w["down"]), 0.1)

    def loss(self, length: int, run: Callable[..., Tensor] = lambda block, x: block(x)) -> Tensor:
        tokens = np.arange(length) % 64
        x = autograd.embedding(tokens, self.w["embed"])
        for _ in range(4):
            x = run(self.block, x)
        return autograd.linear_cross_entropy(x, self.w["embed"], (tokens + 1) % 64)


@pytest.mark.parametrize("run", [lambda block, x: block(x), checkpoint], ids=["plain", "checkpoint"])
def test_memory_stays_flat_over_training_steps(run: Callable[..., Tensor]) -> None:
    """The same work takes the same blocks: nothing is added to what is used, cached or held at the peak."""
    net = Net()
    optimizer = AdamW(net.parameters, lr=1e-3)
    seen = []
    for _ in range(8):
        reset_peak_memory()
        net.loss(48, run).backward()
        optimizer.step()
        optimizer.zero_grad()
        stats = memory_stats()
        seen.append((stats["in_use"], stats["peak"], stats["in_use"] + stats["cached"]))
    assert len(set(seen[2:])) == 1, seen  # the first step makes the moments, the second finds its gradients' blocks


def test_lengths_that_vary_do_not_grow_memory() -> None:
    net = Net()
    held, cached = [], []
    for length in [8, 61, 33, 50, 17, 64, 40] * 3:
        net.loss(length).backward()
        for parameter in net.parameters:
            parameter.zero_grad()
        held.append(in_use())
        cached.append(memory_stats()["cached"])
    assert len(set(held)) == 1
    assert len(set(cached[7:])) == 1  # every length has its blocks after the first round


@pytest.mark.parametrize("end", ["dropped", "walked", "no_grad", "failed"])
def test_a_graph_leaves_nothing_behind_without_the_garbage_collector(end: str) -> None:
    net = Net()
    before = in_use()
    if end == "dropped":
        net.loss(48)
    elif end == "walked":
        net.loss(48).backward()
        for parameter in net.parameters:
            parameter.zero_grad()
    elif end == "no_grad":
        with no_grad():
            net.loss(48)
    else:
        with pytest.raises(ValueError, match="outside the vocabulary"):
            autograd.cross_entropy(autograd.linear(net.block(zeros(48, 32)), net.w["embed"]), np.full(48, 64))
    assert in_use() == before


@pytest.mark.parametrize("name", ["exp", "sigmoid", "tanh", "sqrt", "softmax", "log_softmax", "max"])
def test_operations_that_save_their_own_output_make_no_cycle(name: str) -> None:
    x = Tensor(np.ones((64, 64)), requires_grad=True)
    before = in_use()
    y = getattr(autograd, name)(x)
    assert y.requires_grad
    del y
    assert in_use() == before


def test_gradients_are_freed_by_zero_grad() -> None:
    x = zeros(512, 512, requires_grad=True)
    before = in_use()
    (x * 2.0).sum().backward()
    assert in_use() - before == MIB
    x.zero_grad()
    assert in_use() == before


def test_intermediate_results_that_no_backward_reads_are_freed_at_once() -> None:
    """Adding needs neither operand again: a long sum holds two buffers, not fifty."""
    x = zeros(256, 1024, requires_grad=True)

    def chain() -> Tensor:
        y = x
        for _ in range(50):
            y = y + 1.0
        return y

    assert peak_of(chain) <= 2 * MIB + 64 * 200


def test_gradients_of_the_walk_are_freed_behind_it() -> None:
    x = zeros(256, 1024, requires_grad=True)
    y = x
    for _ in range(50):
        y = y + 1.0
    assert peak_of(y.sum().backward) <= 3 * MIB


def test_without_recording_only_the_newest_result_is_held() -> None:
    x = zeros(256, 1024, requires_grad=True)

    def chain() -> None:
        y = x
        for _ in range(20):
            y = autograd.exp(y * 0.5)

    with no_grad():
        assert peak_of(chain) <= 3 * MIB + 64 * 30
    assert peak_of(chain) >= 20 * MIB


def test_checkpoint_holds_one_block_instead_of_all() -> None:
    x = zeros(128, 128, requires_grad=True)  # 64 KiB; a block saves eight of it

    def block(h: Tensor) -> Tensor:
        for _ in range(8):
            h = autograd.sigmoid(h)
        return h

    def run(apply: Callable[..., Tensor]) -> Callable[[], None]:
        def step() -> None:
            h = x
            for _ in range(8):
                h = apply(block, h)
            h.sum().backward()

        return step

    plain, less = peak_of(run(lambda block, h: block(h))), peak_of(run(checkpoint))
    assert plain >= 64 * x.nbytes
    assert less <= (8 + 8 + 4) * x.nbytes


def test_lora_saves_its_input_once_and_the_small_product() -> None:
    x = Tensor(np.zeros((128, 256)), requires_grad=True)
    a, b = zeros(4, 256, requires_grad=True), zeros(512, 4, requires_grad=True)
    weight = Tensor(np.zeros((512, 256)), dtype="bfloat16")
    out = autograd.lora_linear(x, weight, a, b, 1.0, dropout=0.5)
    own = sum(t.nbytes for t in (x, a, b, weight))
    assert out.grad_fn.saved_bytes == own + 128 * 4 * 4


# ---------------------------------------------------------------------------------- what never exists as a whole
def test_linear_cross_entropy_never_holds_the_logits() -> None:
    rows, vocabulary, hidden = 1024, 16_384, 8  # logits of 64 MiB
    x, w = zeros(rows, hidden, requires_grad=True), zeros(vocabulary, hidden, requires_grad=True)
    targets = np.arange(rows)
    fused = peak_of(lambda: autograd.linear_cross_entropy(x, w, targets).backward())
    assert fused <= 33 * MIB
    whole = peak_of(lambda: autograd.cross_entropy(autograd.linear(x, w), targets).backward())
    assert whole >= 64 * MIB


def test_attention_saves_no_probabilities() -> None:
    def saved(length: int) -> int:
        q = zeros(1, length, 2, 16, requires_grad=True)
        return autograd.attention(q, q, q).grad_fn.saved_bytes

    assert saved(256) == 2 * saved(128)
    length = 2048  # probabilities would be 32 MiB
    q, k, v = (zeros(1, length, 2, 16, requires_grad=True) for _ in range(3))
    assert peak_of(lambda: autograd.attention(q, k, v).sum().backward()) <= 3 * MIB


def grown(code: str) -> float:
    """MiB by which a fresh process's peak grew while it ran the second half of `code`: scratch of kernels included."""
    prepare, work = (textwrap.dedent(part).strip() for part in code.split("# ---\n"))
    program = f"""
import numpy as np
from entrenar import autograd
from entrenar.autograd import Tensor
def peak():  # of this process alone: what getrusage says begins with its parent's
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
{prepare}
before = peak()
{work}
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_attention_over_a_long_sequence_stays_small_in_the_whole_process() -> None:
    code = """
    q = Tensor(np.zeros((1, 4096, 2, 16)), requires_grad=True)
    warm = autograd.attention(q[:, :64], q[:, :64], q[:, :64])
    # ---
    autograd.attention(q, q, q).sum().backward()
    assert q.grad is not None
    """
    assert grown(code) < 24  # probabilities: 128 MiB


def test_the_fused_head_stays_small_in_the_whole_process() -> None:
    code = """
    x = Tensor(np.zeros((1024, 16)), requires_grad=True)
    w = Tensor(np.zeros((32768, 16)), requires_grad=True)
    # ---
    autograd.linear_cross_entropy(x, w, np.zeros(1024, int)).backward()
    assert w.grad is not None
    """
    assert grown(code) < 80  # a chunk of 43 MiB, 11 of its packed copy, gradients of 2; the logits twice are 256
