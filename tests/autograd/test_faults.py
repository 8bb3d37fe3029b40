"""What once crashed the interpreter, hung it, or gave a wrong gradient without a word; each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAD = """
import threading
import numpy as np
from entrenar import autograd
from entrenar.autograd import QuantizedTensor, Tensor, checkpoint
from entrenar.errors import EntrenarError, GraphError, ShapeError

def refused(function):
    try:
        function()
    except EntrenarError as error:
        return str(error)
    raise AssertionError("was not refused")
"""


def run(script: str, timeout: float = 120) -> str:
    """What the script prints; it must end by itself, with status 0 and nothing on stderr."""
    result = subprocess.run(
        [sys.executable, "-c", HEAD + script], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stderr[-2000:]
    return result.stdout


# ---------------------------------------------------------------------------------- integer arrays that change
INDEXED = {
    "embedding": ("autograd.embedding(ids, w) * up", (5, 3), (2, 2, 3), "[[0, 1], [4, 1]]"),
    "cross_entropy": ("autograd.cross_entropy(w, ids)", (2, 5), (), "[0, 4]"),
    "linear_cross_entropy": ("autograd.linear_cross_entropy(w, up, ids)", (2, 3), (5, 3), "[0, 4]"),
    "rope": ("autograd.rope(w, cos, sin, ids) * up", (1, 3, 1, 4), (1, 3, 1, 4), "[[0, 7, 3]]"),
    "attention": ("autograd.attention(w, w * 2.0, w * up, ids)", (1, 6, 1, 4), (1, 6, 1, 4), "[0, 2, 6]"),
    "checkpoint": ("checkpoint(lambda t: autograd.embedding(ids, t), w) * up", (5, 3), (2, 2, 3), "[[0, 1], [4, 1]]"),
}


@pytest.mark.chaos
@pytest.mark.parametrize("name", sorted(set(INDEXED) - {"checkpoint"}))
@pytest.mark.parametrize("garbage", ["2**40", "-2**40", "0"])
def test_backward_uses_the_integers_that_forward_saw(name: str, garbage: str) -> None:
    expression, shape, upstream, ids = INDEXED[name]
    run(f"""
rng = np.random.default_rng(0)
w = Tensor(rng.standard_normal({shape}), requires_grad=True)
up = Tensor(rng.standard_normal({upstream}))
cos, sin = autograd.rope_table(8, [1.0, 0.3])
for changes in (False, True):
    ids = np.array({ids})
    out = {expression}
    if changes:
        ids[...] = {garbage}
    w.grad = None
    out.sum().backward()
    if not changes:
        expected = w.grad.numpy().copy()
assert np.array_equal(w.grad.numpy(), expected)
""")


@pytest.mark.chaos
def test_a_checkpointed_function_that_finds_other_integers_is_refused_or_followed_but_never_out_of_bounds() -> None:
    run("""
w = Tensor(np.ones((5, 3)), requires_grad=True)
ids = np.array([0, 4])
out = checkpoint(lambda t: autograd.embedding(ids, t), w)
ids[...] = 2**40
assert "outside the vocabulary of 5" in refused(out.sum().backward)
""")


# ---------------------------------------------------------------------------------- a Tensor is whole
@pytest.mark.chaos
def test_a_tensor_that_was_not_initialised_is_an_empty_one() -> None:
    run("""
class Silent(Tensor):
    def __init__(self, *arguments):
        pass

for t in (Tensor.__new__(Tensor), Silent(1, 2)):
    assert (t.shape, t.dtype, t.size, t.tolist(), t.is_leaf) == ((0,), "float32", 0, [], True)
    assert (t + 1).shape == (0,) and (t * t).sum().item() == 0
    assert repr(t) and t.reshape(0, 5).shape == (0, 5) and len(t) == 0
    t.requires_grad = True
    (t * 2.0).sum().backward()
    assert t.grad.shape == (0,)
    refused(lambda: autograd.linear(t, t))
    t.grad, t.requires_grad = None, False
    if type(t) is Tensor:
        t.__init__([1.0, 2.0])
        assert t.tolist() == [1.0, 2.0]
""")


@pytest.mark.chaos
def test_a_second_initialisation_is_refused() -> None:
    run("""
for t in (Tensor([1.0, 2.0, 3.0]), Tensor([1.0]) * 2.0, Tensor.from_numpy(np.ones(4, np.float32)), Tensor.empty(3)):
    view, shape = t.numpy(), t.shape
    for data in (np.zeros(1000), [], 1.0, t):
        assert "initialised once" in refused(lambda: t.__init__(data))
    assert t.shape == shape == view.shape
    view[...] = 5.0
    assert t.tolist() == [5.0] * len(t)
""")


@pytest.mark.chaos
def test_a_failed_initialisation_leaves_an_empty_tensor() -> None:
    run("""
t = Tensor.__new__(Tensor)
refused(lambda: t.__init__("text"))
refused(lambda: t.__init__(np.broadcast_to(np.float32(0), (2**40, 2**20))))
assert (t + 1).shape == (0,)
""")


@pytest.mark.chaos
def test_numpy_refuses_to_resize_what_a_tensor_shares() -> None:
    run("""
for make in (lambda: np.ones(4, np.float32), lambda: np.ones((4, 4), np.float32)):
    base = make()
    for shared in (base, base[1:2]):
        t = Tensor.from_numpy(shared)
        kept = t.detach().reshape(-1)
        del t
        for array in (base, shared):
            try:
                array.resize(1000, refcheck=False)
            except ValueError:
                pass
            else:
                raise AssertionError("was resized")
        assert kept.sum().item() == shared.size
        del kept
base = np.ones(4, np.float32)
t = Tensor.from_numpy(base)
del t
base.resize(1000, refcheck=False)  # nobody shares it any longer
assert base.shape == (1000,)
""")


@pytest.mark.chaos
def test_numpy_refuses_to_resize_what_a_quantized_matrix_reads() -> None:
    run("""
def whole(array):
    return array if array.base is None else whole(array.base)

own = QuantizedTensor.quantize(np.ones((4, 64), np.float32), "nf4")
names = ("quantized_values", "scales", "quantized_scales", "scale_map")
for make in (
    lambda: QuantizedTensor.quantize(np.ones((4, 64), np.float32), "q4_0"),
    lambda: QuantizedTensor.quantize(np.ones((4, 64), np.float32), "int16"),
    lambda: QuantizedTensor.from_arrays({name: array.copy() for name, array in own.to_arrays().items()}, "nf4"),
    lambda: own,
):
    q = make()
    expected, held = q.dequantize(), [whole(array) for name in names if (array := getattr(q, name)) is not None]
    for array in held:
        try:
            array.resize(1 << 20, refcheck=False)
        except ValueError:
            pass
        else:
            raise AssertionError("was resized")
    assert np.array_equal(q.dequantize(), expected)
""")


# ---------------------------------------------------------------------------------- sizes of 0
EMPTY = [
    "T(0, N).sum()",
    "T(0, N).sum(1)",
    "T(0, N).mean(1)",
    "T(N, 0, 4).sum((0, 2))",
    "T(N, 0, N).sum((0, 2))",
    "T(N, 0, 4).max((0, 2))",
    "T(0, N).max(1)",
    "T(N, 0, 4) + 1.0",
    "T(N, 0, 4) * T(N, 0, 1)",
    "T(N, 0, 4) / T(4)",
    "-T(0, N)",
    "autograd.softmax(T(0, N))",
    "autograd.softmax(T(N, 0))",
    "autograd.softmax(T(N, 0, 4), 0)",
    "autograd.log_softmax(T(N, 0, 4), 1)",
    "T(N, 0, 4).transpose(2, 0, 1)",
    "T(N, 0, 4).T",
    "T(N, 0, 4)[::2, :, 1:]",
    "T(N, 0, 4)[5]",
    "autograd.concatenate([T(N, 0, 4), T(N, 0, 2)], -1)",
    "T(N, 0).reshape(0, N)",
    "T(N, 0) @ T(0, 0)",
    "T(N, 0, 3) @ T(3, 0)",
    "T(N, 0, 3) @ T(1, 3, 5)",
    "T(N, 3, 0) @ T(N, 0, 0)",
    "T(0, N) @ T(N, 0)",
    "T(0, N) @ T(N, 0)",
    "T(5, 0, N) @ T(N, 0)",
    "autograd.linear(T(N, 0), T(0, 0))",
    "autograd.linear(T(0, N), T(0, N))",
    "autograd.grouped_linear(T(N, 0), [T(0, 0), T(0, 0)])[0]",
    "autograd.lora_linear(T(N, 0), T(0, 0), T(0, 0), T(0, 0), 1.0)",
    "autograd.relu(T(N, 0))",
    "autograd.swiglu(T(N, 0), T(N, 0))",
    "autograd.dropout(T(N, 0), 0.5)",
    "T(N, 0) ** 2.0",
    "autograd.rms_norm(T(N, 0, 4), T(4))",
    "autograd.layer_norm(T(N, 0, 4), T(4), T(4))",
    "autograd.embedding(np.zeros((N, 0), int), T(5, 3))",
    "autograd.embedding([0, 1], T(N, 0))",
    "autograd.cross_entropy(T(N, 0, 5), np.zeros((N, 0), int), reduction='sum')",
    "autograd.linear_cross_entropy(T(N, 0, 5), T(7, 5), np.zeros((N, 0), int), reduction='sum')",
    "autograd.rope(T(N, 1, 0, 4), *autograd.rope_table(8, [1.0, 0.5]))",
    "autograd.rope(T(0, 8, N, 4), *autograd.rope_table(8, [1.0, 0.5]))",
    "autograd.attention(T(N, 0, 2, 4), T(N, 0, 1, 4), T(N, 0, 1, 4))",
    "autograd.attention(T(0, N, 2, 4), T(0, N, 1, 4), T(0, N, 1, 4))",
    "autograd.attention(T(N, 0, 2, 4), T(N, 0, 1, 4), T(N, 0, 1, 4), [0, 0])",
    "Tensor(QuantizedTensor.quantize(np.ones((N, 0), np.float32), 'nf4').dequantize())",
    "Tensor(QuantizedTensor.quantize(np.ones((0, N), np.float32), 'q4_0').dequantize())",
    "autograd.linear(T(N, 0), QuantizedTensor.quantize(np.ones((0, 0), np.float32), 'nf4'))",
]


@pytest.mark.chaos
def test_nothing_is_looped_over_where_the_size_is_zero() -> None:
    """Forward and backward of every operation in a moment, however long the other axes are."""
    run(
        f"""
import time
N = 2**36

def T(*shape):
    t = Tensor(np.ones(shape)) if 0 not in shape else Tensor.empty(*shape)
    t.requires_grad = True
    return t

slow = []
for expression in {EMPTY!r}:
    started = time.monotonic()
    try:
        out = eval(expression)
        if out.requires_grad:
            out.backward(Tensor.empty(*out.shape) if out.size == 0 else np.ones(out.shape))
    except ShapeError as error:
        pass
    if time.monotonic() - started > 5:
        slow.append(expression)
assert not slow, slow
""",
        timeout=300,
    )


# ---------------------------------------------------------------------------------- threads
@pytest.mark.chaos
def test_gradients_are_dropped_from_another_thread_while_backward_runs() -> None:
    run("""
weights = [Tensor(np.full((96, 96), 0.01), requires_grad=True) for _ in range(6)]
stop = threading.Event()

def drop():
    while not stop.is_set():
        for w in weights:
            w.grad = None
            w.zero_grad()

threads = [threading.Thread(target=drop) for _ in range(2)]
for t in threads:
    t.start()
for _ in range(60):
    x = Tensor(np.ones((64, 96)))
    for w in weights:
        x = autograd.rms_norm(autograd.linear(x, w), weights[0][0]) + x
    x.sum().backward()
stop.set()
for t in threads:
    t.join()
""")


@pytest.mark.chaos
def test_backward_from_several_threads_into_shared_weights_loses_no_update() -> None:
    run("""
w, b = Tensor(np.ones((64, 64)), requires_grad=True), Tensor(np.ones(64), requires_grad=True)
ROUNDS, THREADS = 40, 4

def work():
    for _ in range(ROUNDS):
        autograd.linear(Tensor(np.ones((32, 64))), w, b).sum().backward()

for trial in range(3):
    w.grad = b.grad = None
    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert (w.grad.numpy() == 32.0 * ROUNDS * THREADS).all()
    assert (b.grad.numpy() == 32.0 * ROUNDS * THREADS).all()
""")


@pytest.mark.chaos
def test_one_graph_is_walked_by_one_thread() -> None:
    run("""
for _ in range(30):
    x = Tensor(np.ones((50, 50)), requires_grad=True)
    y = x
    for _ in range(20):
        y = autograd.silu(y @ x)
    out, refusals = y.sum(), []

    def work():
        try:
            out.backward()
        except GraphError as error:
            refusals.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(refusals) == 2 and all("an earlier backward freed" in text for text in refusals)
""")


@pytest.mark.chaos
def test_backward_works_in_a_child_that_was_forked_while_another_thread_was_in_backward() -> None:
    run("""
import os
import warnings
warnings.simplefilter("ignore")
stop = threading.Event()

def work():
    w = Tensor(np.ones((128, 128)), requires_grad=True)
    while not stop.is_set():
        autograd.linear(Tensor(np.ones((64, 128))), w).sum().backward()

thread = threading.Thread(target=work)
thread.start()
for _ in range(10):
    child = os.fork()
    if child == 0:
        x = Tensor([2.0], requires_grad=True)
        (x * x).backward()
        os._exit(0 if x.grad.tolist() == [4.0] else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
thread.join()
""")


# ---------------------------------------------------------------------------------- the end of the interpreter
@pytest.mark.chaos
@pytest.mark.parametrize("at", ["module", "atexit", "cycle"])
def test_backward_from_a_finaliser_is_quiet(at: str) -> None:
    run(f"""
import atexit

class Last:
    def __init__(self):
        self.x = Tensor([1.0, 2.0], requires_grad=True)
        self.out = checkpoint(lambda t: autograd.dropout(t * t, 0.5), self.x).sum()
        self.linear = autograd.linear(self.x, Tensor(np.ones((2, 2)))).sum()

    def __del__(self):
        self.out.backward()
        self.linear.backward()

last = Last()
if {at!r} == "cycle":
    last.me = last
if {at!r} == "atexit":
    atexit.register(last.__del__)
    last.__class__.__del__ = lambda self: None
""")
