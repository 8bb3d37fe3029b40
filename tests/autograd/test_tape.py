"""The tape: sums over paths, freed graphs, switched recording, deep graphs, and blocks that are computed again."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from entrenar import autograd
from entrenar.autograd import (
    Tensor,
    backward,
    checkpoint,
    dropout,
    enable_grad,
    grad_enabled,
    manual_seed,
    memory_stats,
    no_grad,
    random,
)
from entrenar.errors import GraphError, ShapeError


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    before = random.get_state()
    manual_seed(42)
    yield
    random.set_state(before)


def normal(*shape: int, seed: int = 0, requires_grad: bool = True) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=requires_grad)


def leaf(*values: float) -> Tensor:
    return Tensor(list(values), requires_grad=True)


# ---------------------------------------------------------------------------------- sums over paths
@pytest.mark.gradient
def test_a_tensor_used_several_times_gets_the_sum_once_per_path() -> None:
    x = leaf(3.0)
    y = x * 2.0  # a computed tensor with four uses, two of them in one operation
    (y * y + y + autograd.concatenate([y, y]).sum()).backward([1.0])
    assert x.grad.tolist() == [2 * (2 * 6 + 1 + 2)]


@pytest.mark.gradient
def test_doubling_sixty_times_is_one_walk_with_an_exact_result() -> None:
    x = leaf(1.0)
    y = x
    for _ in range(60):  # 2^60 paths: a walk a path would not end
        y = y + y
    y.backward()
    assert x.grad.tolist() == [2.0**60]


@pytest.mark.gradient
def test_residual_chains_are_exact_at_any_depth() -> None:
    """h + w h with w = 0 passes the gradient on as it is; each w gets the product of stream and gradient."""
    depth = 400
    x, seed = normal(3, 5), normal(3, 5, seed=1, requires_grad=False)
    weights = [leaf(0.0) for _ in range(depth)]
    h = x
    for w in weights:
        h = h + w * h
    h.backward(seed)
    assert x.grad.numpy().tobytes() == seed.numpy().tobytes()
    expected = np.sum(x.numpy().astype(np.float64) * seed.numpy())
    assert len({w.grad.item() for w in weights}) == 1
    assert weights[0].grad.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.gradient
def test_powers_of_three_halves_are_exact() -> None:
    x = leaf(1.0)
    h = x
    for _ in range(14):
        h = h + h * 0.5
    h.backward()
    assert x.grad.tolist() == [1.5**14]  # 23 bits: float32 holds it exactly


@pytest.mark.gradient
def test_paths_of_unequal_length_meet_before_the_walk_goes_on() -> None:
    """x is reached first along the short path; its own gradient must wait for the long one."""
    a = leaf(2.0)
    x = a * a
    long = x
    for _ in range(10):
        long = long * 1.0
    (x + long * x).backward([1.0])
    assert a.grad.tolist() == [(1 + 2 * 4) * 2 * 2]  # d(x + x^2)/dx dx/da


@pytest.mark.gradient
def test_diamonds_share_gradients_without_disturbing_each_other() -> None:
    """add hands one gradient to both operands: what one of them gets later must not reach the other."""
    a, b = normal(4, 3), normal(4, 3, seed=1)
    left, right = a * 2.0, b * 3.0
    total = left + right
    out = total + left  # left's gradient is shared with total's, then grows
    out = out + total.reshape(12).reshape(4, 3)  # reshape passes an alias on
    ones = Tensor(np.ones((4, 3)))
    out.backward(ones)
    assert a.grad.tolist() == np.full((4, 3), 2.0 * 3).tolist()
    assert b.grad.tolist() == np.full((4, 3), 3.0 * 2).tolist()
    assert ones.tolist() == np.ones((4, 3)).tolist()


@pytest.mark.gradient
def test_only_the_leaves_behind_the_root_are_touched() -> None:
    a, b, c = leaf(1.0), leaf(2.0), leaf(3.0)
    other = a * c
    (a * b).backward()
    assert (a.grad.tolist(), b.grad.tolist(), c.grad) == ([2.0], [1.0], None)
    other.backward()  # a graph of its own, not freed by the first walk
    assert (a.grad.tolist(), c.grad.tolist()) == ([5.0], [1.0])


ONES = np.ones(4, np.float32)


def two_readers(x: Tensor, w: Tensor) -> Tensor:
    return (autograd.linear(x, w) * autograd.linear(x, w)).sum()


FROZEN_LATE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mul": lambda x, w: (x * w).sum(),
    "div": lambda x, w: (x / w).sum(),
    "matmul": lambda x, w: (x @ w).sum(),
    "linear": lambda x, w: autograd.linear(x, w).sum(),
    "lora_linear": lambda x, w: autograd.lora_linear(x, w, w, w, 1.0).sum(),
    "swiglu": lambda x, w: autograd.swiglu(x, w).sum(),
    "rms_norm": lambda x, w: autograd.rms_norm(x.reshape(1, 16), w.reshape(16)).sum(),
    "linear_cross_entropy": lambda x, w: autograd.linear_cross_entropy(x, w, [0, 1, 2, 3]),
    "attention": lambda x, w: autograd.attention(*(t.reshape(1, 4, 1, 4) for t in (x, w, w))).sum(),
    "concatenate": lambda x, w: autograd.concatenate([x, w]).sum(),
    # outputs that are computed again instead of saved
    "linear of rms_norm": lambda x, w: autograd.linear(autograd.rms_norm(x, ONES), w).sum(),
    "lora_linear of swiglu": lambda x, w: autograd.lora_linear(autograd.swiglu(x, x), w, w, w, 1.0).sum(),
    "two readers of one rms_norm": lambda x, w: two_readers(autograd.rms_norm(x, ONES), w),
}


@pytest.mark.gradient
@pytest.mark.parametrize("name", FROZEN_LATE)
@pytest.mark.parametrize("late", [0, 1])
def test_what_is_frozen_or_thawed_between_forward_and_backward_disturbs_nothing(name: str, late: int) -> None:
    """The graph was recorded for one set of leaves: the other operand's gradient is the same, and memory is safe."""
    expected, operands = ([normal(4, 4), normal(4, 4, seed=1)] for _ in range(2))
    FROZEN_LATE[name](*expected).backward()
    operands[late].requires_grad = False
    loss = FROZEN_LATE[name](*operands)
    operands[late].requires_grad = True
    loss.backward()
    other = 1 - late
    assert operands[other].grad.numpy().tobytes() == expected[other].grad.numpy().tobytes()
    again = [normal(4, 4), normal(4, 4, seed=1)]
    loss = FROZEN_LATE[name](*again)
    again[late].requires_grad = False
    loss.backward()
    assert again[late].grad is None
    assert again[other].grad.numpy().tobytes() == expected[other].grad.numpy().tobytes()


@pytest.mark.gradient
def test_backward_from_the_middle_leaves_the_rest_of_the_graph_alone() -> None:
    x = leaf(3.0)
    middle = x * x
    top = middle * 2.0
    middle.backward()
    assert x.grad.tolist() == [6.0]
    with pytest.raises(GraphError, match="freed"):
        top.backward()


# ---------------------------------------------------------------------------------- roots and freed graphs
@pytest.mark.unit
def test_a_second_backward_on_a_freed_graph_says_so_and_adds_nothing() -> None:
    x, w = leaf(1.0, 2.0), leaf(5.0)
    shared = x * 3.0
    first, second = shared.sum(), (shared * w).sum()
    first.backward()
    message = "an earlier backward freed; run the forward pass again before a second backward"
    with pytest.raises(GraphError, match=message):
        first.backward()
    with pytest.raises(GraphError, match=message):
        second.backward()
    assert (x.grad.tolist(), w.grad) == ([3.0, 3.0], None)


@pytest.mark.unit
def test_two_losses_over_one_trunk_go_through_their_sum() -> None:
    x = leaf(1.0, 2.0)
    shared = x * 3.0
    (shared.sum() + (shared * shared).sum()).backward()
    assert x.grad.tolist() == [3 + 2 * 9 * 1, 3 + 2 * 9 * 2]


@pytest.mark.unit
def test_no_leaf_shares_the_memory_of_its_gradient() -> None:
    a, b, c = normal(3), normal(3), normal(3)
    given = np.ones(3, np.float32)
    (a + b).backward(Tensor.from_numpy(given))
    c.reshape(3, 1).backward(Tensor.from_numpy(given.reshape(3, 1)))
    for leaf in (a, b, c):
        leaf.grad.numpy()[...] *= 2  # as clipping does
    assert [leaf.grad.tolist() for leaf in (a, b, c)] == [[2.0] * 3] * 3
    assert given.tolist() == [1.0] * 3


@pytest.mark.unit
def test_backward_of_more_than_one_element_needs_a_gradient() -> None:
    x = leaf(1.0, 2.0)
    y = x * x
    with pytest.raises(ShapeError, match=r"shape \(2,\) needs the gradient argument"):
        backward(y)
    with pytest.raises(ShapeError, match=r"gradient has shape \(3,\), expected \(2,\)"):
        backward(y, [1.0, 1.0, 1.0])
    backward(y, [1.0, 10.0])  # the refused calls freed nothing
    assert x.grad.tolist() == [2.0, 40.0]
    z = leaf(1.0, 2.0)
    (z * z).reshape(1, 2).max(1).backward()  # one element in any shape
    assert z.grad.tolist() == [0.0, 4.0]


@pytest.mark.unit
def test_backward_without_a_graph_is_an_error() -> None:
    with pytest.raises(GraphError, match="requires_grad=True, outside no_grad"):
        Tensor(1.0).backward()
    with no_grad():
        y = leaf(1.0) * 2.0
    with pytest.raises(GraphError, match="requires_grad=True, outside no_grad"):
        backward(y)
    with pytest.raises(GraphError, match="needs a Tensor, not float"):
        backward(1.0)


@pytest.mark.unit
def test_a_failed_walk_frees_its_graph_so_that_no_half_sum_survives() -> None:
    x = leaf(2.0)
    calls = []

    def fails_later(t: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("second call")
        return t * 1.0

    shared = x * 3.0
    other = shared * 5.0
    loss = checkpoint(fails_later, shared) + shared  # shared holds the gradient of `+ shared` when the block fails
    with pytest.raises(RuntimeError, match="second call"):
        loss.backward()
    with pytest.raises(GraphError, match="freed"):
        other.backward()
    assert x.grad is None


# ---------------------------------------------------------------------------------- recording
@pytest.mark.unit
def test_no_grad_and_enable_grad_nest() -> None:
    x = leaf(1.0)
    states = [grad_enabled()]
    with no_grad():
        states.append(grad_enabled())
        with no_grad():
            states.append(grad_enabled())
            with enable_grad():
                states.append((x * 2.0).requires_grad)
                with no_grad():
                    states.append((x * 2.0).requires_grad)
                states.append(grad_enabled())
            states.append((x * 2.0).requires_grad)
        states.append(grad_enabled())
    states.append(grad_enabled())
    assert states == [True, False, False, True, False, True, False, False, True]


@pytest.mark.unit
def test_recording_comes_back_after_an_error() -> None:
    for context in (no_grad, enable_grad):
        with pytest.raises(ZeroDivisionError), context():
            _ = 1 / 0
        assert grad_enabled()


@pytest.mark.unit
def test_no_grad_decorates_functions() -> None:
    @no_grad()
    def double(x: Tensor, factor: float = 2.0) -> Tensor:
        """Doubles."""
        return x * factor

    assert not double(leaf(1.0), factor=3.0).requires_grad
    assert (double.__name__, double.__doc__) == ("double", "Doubles.")
    assert grad_enabled()


@pytest.mark.unit
def test_recording_is_switched_per_thread() -> None:
    """A thread that is born inside no_grad records; its own no_grad is seen by nobody else."""
    seen: dict[str, bool] = {}
    inside, done = threading.Event(), threading.Event()

    def work() -> None:
        seen["child at birth"] = grad_enabled()
        with no_grad():
            inside.set()
            done.wait(10)
            seen["child inside its own"] = grad_enabled()

    with no_grad():
        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(10)
        with enable_grad():
            seen["parent"] = (leaf(1.0) * 2.0).requires_grad
        done.set()
        thread.join()
    assert seen == {"child at birth": True, "parent": True, "child inside its own": False}
    assert grad_enabled()


def small_step(seed: int) -> bytes:
    """Forward and backward of a little network: loss and gradients as bytes."""
    x, w, norm = normal(40, 64, seed=seed), normal(48, 64, seed=seed + 1), normal(48, seed=seed + 2)
    hidden = autograd.rms_norm(autograd.silu(autograd.linear(x, w)), norm)
    q = hidden.reshape(1, 40, 3, 16)
    loss = autograd.cross_entropy(autograd.attention(q, q, q).reshape(40, 48), np.arange(40))
    loss.backward()
    return b"".join(t.numpy().tobytes() for t in (loss, x.grad, w.grad, norm.grad))


@pytest.mark.unit
def test_graphs_of_several_threads_do_not_meet() -> None:
    expected = [small_step(seed) for seed in range(4)]
    found: dict[tuple[int, int], bytes] = {}

    def work(seed: int) -> None:
        for repetition in range(5):
            found[seed, repetition] = small_step(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert [key for key, value in found.items() if value != expected[key[0]]] == []


# ---------------------------------------------------------------------------------- what the graph holds
@pytest.mark.memory
def test_saved_buffers_are_freed_as_the_walk_passes_them() -> None:
    """The first block of the chain is computed again last of all: by then the others' buffers must be gone."""
    size, depth = 1 << 18, 20
    seen = []

    def probe(t: Tensor) -> Tensor:
        seen.append(memory_stats()["in_use"])
        return t * 1.0

    x = Tensor(np.zeros(size), requires_grad=True)
    before = memory_stats()["in_use"]
    y = checkpoint(probe, x)
    for _ in range(depth):
        y = autograd.sigmoid(y)  # saves its output
    held = memory_stats()["in_use"] - before
    assert held >= depth * 4 * size
    out = y.sum()
    del y
    out.backward()
    assert len(seen) == 2
    assert seen[1] - before <= 3 * 4 * size


@pytest.mark.memory
def test_a_node_reports_what_it_saves_until_it_is_freed() -> None:
    x = normal(8, 16)
    y = autograd.exp(x)
    node = y.grad_fn
    assert node.saved_bytes == 8 * 16 * 4
    y.sum().backward()
    assert node.saved_bytes == 0


DEEP = """
import threading
from entrenar import autograd
from entrenar.autograd import Tensor

DEPTH = 50_000
CHAINS = {
    "mul": lambda h: h * 1.0,
    "saved output": lambda h: h * autograd.exp(h * 0.0),
    "reshape": lambda h: h.reshape(1, 1).reshape(1),
    "concatenate": lambda h: autograd.concatenate([h, h])[:1],
}

def work():
    for name, step in CHAINS.items():
        for walk in (True, False):
            x = Tensor([1.0], requires_grad=True)
            h = x
            for _ in range(DEPTH):
                h = step(h)
            if walk:
                h.sum().backward()
                assert x.grad.tolist() == [1.0], (name, x.grad)
            del h
    print("done", flush=True)

threading.stack_size(512 * 1024)  # a recursion of 50,000 nodes would need far more
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.chaos
def test_deep_graphs_overflow_no_stack_in_backward_or_when_dropped() -> None:
    """In a process of its own: a stack overflow is a crash, not an exception."""
    result = subprocess.run([sys.executable, "-c", DEEP], capture_output=True, text=True, timeout=300, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, "done"), result.stderr[-2000:]


# ---------------------------------------------------------------------------------- the seed
@pytest.mark.unit
def test_a_seed_fixes_every_random_operation() -> None:
    x, w = normal(20, 30, requires_grad=False), normal(12, 30, seed=1, requires_grad=False)
    a, b = normal(4, 30, seed=2), normal(12, 4, seed=3)

    def draw(seed: int) -> list[bytes]:
        manual_seed(seed)
        first, second = dropout(x, 0.5), dropout(x, 0.5)
        lora = autograd.lora_linear(x, w, a, b, 2.0, dropout=0.3)
        a.grad = None
        lora.sum().backward()
        return [t.numpy().tobytes() for t in (first, second, lora, a.grad)]

    one, again, other = draw(1), draw(1), draw(2)
    assert one == again
    assert one[0] != one[1]
    assert [mine == theirs for mine, theirs in zip(one, other, strict=True)] == [False] * 4
