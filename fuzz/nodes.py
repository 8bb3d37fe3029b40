"""The nodes that fuzz/graphs.py puts into random graphs: each function makes one, in entrenar and in float64 NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import reference as ref
from reference import Value

from entrenar import autograd
from entrenar.autograd import QuantizedTensor, Tensor, rope_table
from entrenar.autograd.random import get_state, set_state
from entrenar.autograd.weight_types import WEIGHT_TYPES

Choose = Callable[[int], int]  # choose(n) is in [0, n)
Pair = tuple[Tensor, Value]

SHAPES: list[tuple[int, ...]] = [(), (1,), (5,), (3, 1), (3, 5), (2, 3, 5), (2, 1, 5), (17,), (4, 33), (2, 12), (64,)]
SHAPES += [(3, 64), (1, 5, 32), (2, 1, 3, 4)]
LEAST_MEAN_SQUARE = 0.05  # below, a norm's gain makes rounding errors large
MOST_AXES = 6
VALUE_TOLERANCE = 2e-5  # of the largest number in sight; the worst of 20,000 graphs is 3e-6


@dataclass
class Graph:
    """The nodes so far, the leaves among them, and where choices and numbers come from."""

    choose: Choose
    rng: np.random.Generator
    leaves: list[Pair] = field(default_factory=list)
    nodes: list[Pair] = field(default_factory=list)

    def leaf(self, shape: tuple[int, ...], requires_grad: bool | None = None) -> Pair:
        """A new leaf; frozen or not as chosen."""
        data = np.asarray(self.rng.uniform(-1, 1, shape) * self.one_of([1, 1, 3]), dtype=np.float32)
        grad = bool(self.choose(2)) if requires_grad is None else requires_grad
        pair = Tensor(data, requires_grad=grad), Value(data.astype(np.float64))
        self.leaves.append(pair)
        return pair

    def pick(self, fits: Callable[[tuple[int, ...]], bool] = lambda shape: True) -> Pair:
        """One of the nodes whose shape fits."""
        fitting = [pair for pair in self.nodes if fits(pair[0].shape)]
        return fitting[self.choose(len(fitting))]

    def one_of(self, options: list) -> object:
        return options[self.choose(len(options))]


def settled(t: Tensor, v: Value, what: str) -> Pair:
    """The pair, held together; the float64 side goes on from the float32 numbers, as every later node does.

    Kinks and ties then fall alike on both sides, and errors do not add up from node to node.
    """
    assert t.shape == v.data.shape, f"{what}: shape {t.shape}, expected {v.data.shape}"
    actual = t.numpy().astype(np.float64)
    scale = 1.0 + max((float(np.abs(x).max(initial=0)) for x in (v.data, *(p.data for p, _ in v.parents))), default=0.0)
    worst = float(np.abs(actual - v.data).max(initial=0))
    assert worst <= VALUE_TOLERANCE * scale, f"{what} of shape {t.shape}: off by {worst:.2e} at a scale of {scale:.2g}"
    v.data = actual
    return t, v


def broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    try:
        return len(np.broadcast_shapes(a, b)) <= MOST_AXES
    except ValueError:
        return False


# ---------------------------------------------------------------------- elementwise
def above_half(t: Tensor, v: Value) -> Pair:
    """x^2 + 0.5, on which log, sqrt, powers and quotients are tame."""
    return settled(t * t + 0.5, ref.binary("add", ref.binary("mul", v, v), ref.constant(0.5)), "x^2 + 0.5")


def arithmetic(g: Graph, t: Tensor, v: Value) -> Pair:
    op = g.one_of(["add", "sub", "mul", "div"])
    u, w = g.pick(lambda shape: broadcasts(shape, t.shape))
    if op == "div":
        u, w = above_half(u, w)
    return getattr(autograd, op)(t, u), ref.binary(op, v, w)


def with_number(g: Graph, t: Tensor, v: Value) -> Pair:
    number = g.one_of([0.5, -2.0, 3, 0])
    half = ref.constant(number)
    how = g.choose(5)
    if how == 0:
        return t + number, ref.binary("add", v, half)
    if how == 1:
        return number - t, ref.binary("sub", half, v)
    if how == 2:
        return number * t, ref.binary("mul", v, half)
    if how == 3:
        return t / (number or 4.0), ref.binary("div", v, ref.constant(number or 4.0))
    return t + t * number, ref.binary("add", v, ref.binary("mul", v, half))  # a residual stream, used twice


def function(g: Graph, t: Tensor, v: Value) -> Pair:
    op = g.one_of(list(ref.UNARY))
    if op == "exp" and v.data.size and v.data.max() > 3:
        op = "tanh"
    if op in ("log", "sqrt"):
        t, v = above_half(t, v)
    if op == "gelu_tanh":
        return autograd.gelu(t, approximate="tanh"), ref.unary(op, v)
    return getattr(autograd, op)(t), ref.unary(op, v)


def power(g: Graph, t: Tensor, v: Value) -> Pair:
    exponent = g.one_of([2, 3, 1, 0.5, -1.0, -1.5])
    if exponent not in (1, 2, 3):
        t, v = above_half(t, v)
    return t**exponent, ref.power(v, exponent)


def swiglu(g: Graph, t: Tensor, v: Value) -> Pair:
    u, w = g.pick(lambda shape: shape == t.shape)
    return autograd.swiglu(t, u), ref.binary("mul", ref.unary("silu", v), w)


def dropout(g: Graph, t: Tensor, v: Value) -> Pair:
    p = g.one_of([0.1, 0.5, 0.9])
    y, mask = masked(t.shape, p, lambda: autograd.dropout(t, p))
    return y, ref.binary("mul", v, ref.constant(mask))


def masked(shape: tuple[int, ...], p: float, run: Callable[[], Tensor]) -> tuple[Tensor, np.ndarray]:
    """run(), and what its dropout of probability p multiplied an input of this shape with."""
    state = get_state()
    mask = autograd.dropout(np.ones(shape, np.float32), p).numpy().astype(np.float64)
    set_state(state)
    return run(), mask


# ---------------------------------------------------------------------- axes
def reduce(g: Graph, t: Tensor, v: Value) -> Pair:
    op, keepdims = g.one_of(["sum", "mean", "max"]), bool(g.choose(2))
    axes = [i - t.ndim * g.choose(2) for i in range(t.ndim) if g.choose(2)]
    axis = tuple(axes) if len(axes) > 1 else axes[0] if axes else None
    return getattr(autograd, op)(t, axis, keepdims), ref.reduction(op, v, axis, keepdims)


def soft(g: Graph, t: Tensor, v: Value) -> Pair:
    if t.ndim == 0:
        return -t, ref.binary("sub", ref.constant(0.0), v)
    op, axis = g.one_of(["softmax", "log_softmax"]), g.choose(t.ndim) - t.ndim * g.choose(2)
    return getattr(autograd, op)(t, axis), getattr(ref, op)(v, axis)


def transpose(g: Graph, t: Tensor, v: Value) -> Pair:
    axes = tuple(int(i) for i in g.rng.permutation(t.ndim))
    return autograd.transpose(t, axes), ref.moved(v, lambda x: x.transpose(axes))


def reshape(g: Graph, t: Tensor, v: Value) -> Pair:
    shape: list[int] = [-1, *(d for d in (2, 3, 5) if t.size % 30 == 0)] if g.choose(2) else [1, *t.shape[::-1]]
    if len(shape) > 4:
        shape = [-1]
    return t.reshape(shape), ref.moved(v, lambda x: x.reshape(shape))


def take(g: Graph, t: Tensor, v: Value) -> Pair:
    index: list = []
    for n in t.shape:
        how = g.choose(5)
        if how == 0:
            index.append(g.choose(n) - n * g.choose(2))
        else:
            index.append([slice(None), slice(None, None, -1), slice(1, None), slice(-3, None, 2)][how - 1])
    if g.choose(4) == 0 and t.ndim < MOST_AXES:
        index.insert(g.choose(len(index) + 1), None)
    if g.choose(3) == 0:
        index = [*index[:1], ...]
    return t[tuple(index)], ref.moved(v, lambda x: x[tuple(index)])


def join(g: Graph, t: Tensor, v: Value) -> Pair:
    if t.ndim == 0:
        return t.reshape(1), ref.moved(v, lambda x: x.reshape(1))
    axis = g.choose(t.ndim)
    rest = t.shape[:axis] + t.shape[axis + 1 :]
    others = [g.pick(lambda s: len(s) == t.ndim and s[:axis] + s[axis + 1 :] == rest) for _ in range(1 + g.choose(2))]
    return autograd.concatenate([t, *(u for u, _ in others)], axis), ref.joined([v, *(w for _, w in others)], axis)


# ---------------------------------------------------------------------- norms and products
def norm(g: Graph, t: Tensor, v: Value) -> Pair:
    centred = bool(g.choose(2))
    spread = v.data.var(-1) if centred and t.ndim else (v.data * v.data).mean(-1) if t.ndim else np.zeros(1)
    if (spread < LEAST_MEAN_SQUARE).any():
        return -t, ref.binary("mul", v, ref.constant(-1.0))
    w, b = g.leaf((t.shape[-1],)), g.leaf((t.shape[-1],))
    if not centred:
        return autograd.rms_norm(t, w[0]), ref.rms_norm(v, w[1])
    y = ref.layer_norm(v)
    how = g.choose(4)  # bit 0: with a weight, bit 1: with a bias
    y = ref.binary("mul", y, w[1]) if how & 1 else y
    y = ref.binary("add", y, b[1]) if how & 2 else y
    return autograd.layer_norm(t, w[0] if how & 1 else None, b[0] if how & 2 else None), y


def weight(g: Graph, n: int, k: int) -> tuple[Tensor | QuantizedTensor, Value]:
    """A weight matrix in any storage; those that are not float32 are frozen."""
    quantized = [row.name for row in WEIGHT_TYPES.values() if row.is_quantized and k % row.block_size == 0]
    kind = g.one_of(["float32", "float32", "bfloat16", *quantized])
    if kind == "float32":
        return g.leaf((n, k))
    data = g.rng.uniform(-1, 1, (n, k)).astype(np.float32)
    if kind == "bfloat16":
        t = Tensor(data, dtype="bfloat16")
        return t, Value(t.numpy().astype(np.float64))
    q = QuantizedTensor.quantize(data, kind, double_quantization=bool(g.choose(2)))
    return q, Value(q.dequantize().astype(np.float64))


def linear(g: Graph, t: Tensor, v: Value) -> Pair:
    if t.ndim == 0:
        return autograd.relu(t), ref.unary("relu", v)
    n, k = 1 + g.choose(9), t.shape[-1]
    w, m = weight(g, n, k)
    if g.choose(2):
        b, c = g.leaf((n,))
        return autograd.linear(t, w, b), ref.binary("add", ref.linear(v, m), c)
    return autograd.linear(t, w), ref.linear(v, m)


def lora_linear(g: Graph, t: Tensor, v: Value) -> Pair:
    if t.ndim == 0:
        return autograd.relu(t), ref.unary("relu", v)
    n, k, rank = 1 + g.choose(9), t.shape[-1], 1 + g.choose(4)
    w, m = weight(g, n, k)
    (a, c), (b, d) = g.leaf((rank, k)), g.leaf((n, rank))
    scaling, p = g.one_of([0.5, 2.0]), g.one_of([0.0, 0.3])
    y, mask = masked(t.shape, p, lambda: autograd.lora_linear(t, w, a, b, scaling, p))
    return y, ref.lora_linear(v, ref.binary("mul", v, ref.constant(mask)), m, c, d, scaling)


def matmul(g: Graph, t: Tensor, v: Value) -> Pair:
    if t.ndim == 0:
        return autograd.relu(t), ref.unary("relu", v)
    how = g.choose(4)
    if how == 0:  # a vector
        u, w = g.leaf((t.shape[-1],))
    elif how == 1 and t.ndim == 2:  # with itself
        return t @ t.T, ref.matmul(v, ref.moved(v, np.transpose))
    else:
        lead = g.one_of([(), (2,), (3, 1)] if t.ndim < 3 else [(), t.shape[:-2], (1,)])
        u, w = g.leaf((*lead, t.shape[-1], 1 + g.choose(7)))
    return autograd.matmul(t, u), ref.matmul(v, w)


# ---------------------------------------------------------------------- the model's own
def embedding(g: Graph, t: Tensor, v: Value) -> Pair:
    """Rows of t, or of a table of its own (in any storage), by token id."""
    tokens = g.rng.integers(0, 6, [(3,), (2, 3), ()][g.choose(3)])
    if t.ndim == 2 and g.choose(2):
        tokens = tokens % t.shape[0]
        return autograd.embedding(tokens, t), ref.moved(v, lambda x: x[tokens])
    table, values = weight(g, 6, g.one_of([5, 32, 64]))
    return autograd.embedding(tokens, table), ref.moved(values, lambda x: x[tokens])


def as_heads(g: Graph, t: Tensor, v: Value, even: bool) -> tuple[Tensor, Value]:
    """t as (batch, length, heads, head size); a leaf of its own where t does not divide like that."""
    if t.ndim == 0 or (even and t.shape[-1] % 2):
        t, v = g.leaf((2, 3, 4))
    last = t.shape[-1]
    sizes = [size for size in range(1, last + 1) if last % size == 0 and not (even and size % 2)]
    size, batch = g.one_of(sizes), t.shape[0] if t.ndim > 2 else 1
    shape = (batch, t.size // last // batch, last // size, size)
    return t.reshape(shape), ref.moved(v, lambda x: x.reshape(shape))


def rope(g: Graph, t: Tensor, v: Value) -> Pair:
    t, v = as_heads(g, t, v, even=True)
    batch, length, _, size = t.shape
    frequencies = 100.0 ** -(np.arange(0, size, 2) / size)
    cos, sin = rope_table(40, frequencies)
    positions = g.rng.integers(0, 40, (batch, length)) if g.choose(2) or length > 40 else None
    at = np.arange(length)[None] if positions is None else positions
    angles = (at[..., None] * frequencies)[:, :, None]
    return autograd.rope(t, cos, sin, positions), ref.rope(v, np.cos(angles), np.sin(angles))


def attention(g: Graph, t: Tensor, v: Value) -> Pair:
    (t, v), causal = as_heads(g, t, v, even=False), bool(g.choose(2))
    batch, length, heads, size = t.shape
    how = g.choose(3)
    if how == 0:  # keys, values or both are the queries themselves
        k, v_, keys = (t, v), g.one_of([(t, v), g.leaf(t.shape)]), length
    else:
        keys = length + g.choose(4) * (how == 1)
        groups = g.one_of([n for n in range(1, heads + 1) if heads % n == 0])
        k, v_ = g.leaf((batch, keys, groups, size)), g.leaf((batch, keys, groups, size))
    ends = None
    seen = np.tril(np.ones((length, keys), bool), keys - length) if causal else np.ones((length, keys), bool)
    if keys == length and g.choose(2):  # packed: the batch rows are one run of tokens, cut anew
        ends = np.sort(g.rng.integers(0, batch * length + 1, 3))
        ends = np.array([0, *ends, batch * length])
        run = np.searchsorted(ends, np.arange(batch * length), "right")
        visible = (run[:, None] == run[None]) & (np.tri(batch * length, dtype=bool) if causal else True)
        q_, k_, w_ = (ref.moved(x, lambda a: a.reshape(1, -1, *a.shape[2:])) for x in (v, k[1], v_[1]))
        y = ref.moved(ref.attention(q_, k_, w_, visible[None], size**-0.5), lambda a: a.reshape(t.shape))
    else:
        y = ref.attention(v, k[1], v_[1], seen[None], size**-0.5)
    return autograd.attention(t, k[0], v_[0], ends, causal=causal), y


def loss(g: Graph, t: Tensor, v: Value) -> Pair:
    if t.ndim == 0:
        return autograd.relu(t), ref.unary("relu", v)
    how, fused = g.one_of(["mean", "sum", "none"]), bool(g.choose(2))
    vocabulary = 1 + g.choose(9) if fused else t.shape[-1]
    targets = g.rng.integers(0, vocabulary, t.shape[:-1])
    targets = np.where(g.rng.random(t.shape[:-1]) < 0.3, -100, targets)
    if how == "mean" and (targets == -100).all():
        how = "sum"
    if not fused:
        return autograd.cross_entropy(t, targets, reduction=how), ref.cross_entropy(v, targets, how)
    w, m = weight(g, vocabulary, t.shape[-1])
    how = "sum" if how == "none" else how
    ours = autograd.linear_cross_entropy(t, w, targets, reduction=how)
    return ours, ref.cross_entropy(ref.linear(v, m), targets, how)


def detached(g: Graph, t: Tensor, v: Value) -> Pair:
    with autograd.no_grad():
        t = t * 1.0
    return t + 0.0, ref.constant(v.data)


def checkpointed(g: Graph, t: Tensor, v: Value) -> Pair:
    """A block that is run again in backward: of its argument alone, with a weight that it closes over, with a mask."""
    how = g.choose(3)
    if how == 0 or t.ndim == 0:
        y = autograd.checkpoint(lambda x: x * x * 0.5, t)
        return y, ref.binary("mul", ref.binary("mul", v, v), ref.constant(0.5))
    w, m = g.leaf((t.shape[-1], t.shape[-1]))
    if how == 1:
        y = autograd.checkpoint(lambda x: autograd.silu(autograd.linear(x, w)) + x, t)
        return y, ref.binary("add", ref.unary("silu", ref.linear(v, m)), v)
    y, mask = masked(t.shape, 0.5, lambda: autograd.checkpoint(lambda x: autograd.dropout(x, 0.5) * x, t))
    return y, ref.binary("mul", ref.binary("mul", v, ref.constant(mask)), v)


KINDS: list[Callable[[Graph, Tensor, Value], Pair]] = [arithmetic, with_number, function, power, swiglu, dropout]
KINDS += [reduce, soft, transpose, reshape, take, join, norm, linear, lora_linear, matmul, embedding, rope, attention]
KINDS += [loss, detached, checkpointed]
