"""Random graphs of operations beside a reverse mode of their own in float64 NumPy: reuse, residuals, fan-out.

The graph is a function of a sequence of choices, so a fuzzer's bytes and a hypothesis strategy both can make it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from entrenar import autograd
from entrenar.autograd import Tensor, checkpoint
from entrenar.optim import clip_grad_norm

Choose = Callable[[int], int]  # choose(n) is in [0, n)


@dataclass
class Value:
    """A float64 array and, for each array it was computed from, the function that takes its gradient there."""

    data: np.ndarray
    parents: list[tuple[Value, Callable[[np.ndarray], np.ndarray]]] = field(default_factory=list)
    grad: np.ndarray | None = None


def unbroadcast(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    return gradient.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True).reshape(shape)


def binary(op: str, a: Value, b: Value) -> Value:
    x, y = a.data, b.data
    data, da, db = {
        "add": lambda: (x + y, lambda g: g, lambda g: g),
        "sub": lambda: (x - y, lambda g: g, lambda g: -g),
        "mul": lambda: (x * y, lambda g: g * y, lambda g: g * x),
        "div": lambda: (x / (y * y + 1), lambda g: g / (y * y + 1), lambda g: -2 * g * x * y / (y * y + 1) ** 2),
    }[op]()
    return Value(data, [(a, lambda g: unbroadcast(da(g), x.shape)), (b, lambda g: unbroadcast(db(g), y.shape))])


def reduction(op: str, a: Value, axis: int, keepdims: bool) -> Value:
    x = a.data
    data = getattr(np, op)(x, axis=axis, keepdims=keepdims)

    def backward(g: np.ndarray) -> np.ndarray:
        g = g if keepdims else np.expand_dims(g, axis)
        if op == "max":
            hit = x == x.max(axis, keepdims=True)
            return hit * g / hit.sum(axis, keepdims=True)
        return np.broadcast_to(g, x.shape) / (x.shape[axis] if op == "mean" else 1)

    return Value(data, [(a, backward)])


def moved(a: Value, function: Callable[[np.ndarray], np.ndarray]) -> Value:
    """Any op that only moves elements: its gradient puts them back."""
    places = function(np.arange(a.data.size).reshape(a.data.shape))

    def backward(g: np.ndarray) -> np.ndarray:
        back = np.zeros(a.data.size)
        np.add.at(back, places.reshape(-1), g.reshape(-1))
        return back.reshape(a.data.shape)

    return Value(function(a.data), [(a, backward)])


def joined(values: list[Value], axis: int) -> Value:
    ends = np.cumsum([v.data.shape[axis] for v in values])
    parts = [(v, np.arange(end - v.data.shape[axis], end)) for v, end in zip(values, ends, strict=True)]
    data = np.concatenate([v.data for v in values], axis)
    return Value(data, [(v, lambda g, at=at: np.take(g, at, axis)) for v, at in parts])


def reverse(root: Value, gradient: np.ndarray) -> float:
    """Fill in `grad` below root; returns the norm of the largest gradient on the way, which rounding follows."""
    order: list[Value] = []
    seen: set[int] = set()

    def visit(value: Value) -> None:
        if id(value) not in seen:
            seen.add(id(value))
            for parent, _ in value.parents:
                visit(parent)
            order.append(value)

    visit(root)
    root.grad = gradient
    largest = 0.0
    for value in reversed(order):
        for parent, function in value.parents:
            if value.grad is not None:
                part = function(value.grad)
                largest = max(largest, float(np.linalg.norm(part)))
                parent.grad = part if parent.grad is None else parent.grad + part
    return largest


def unary(op: str, a: Value) -> Value:
    x = a.data
    s = 1 / (1 + np.exp(-x))
    data, slope = {
        "relu": lambda: (np.maximum(x, 0), (x > 0) * 1.0),
        "sigmoid": lambda: (s, s * (1 - s)),
        "tanh": lambda: (np.tanh(x), 1 - np.tanh(x) ** 2),
        "silu": lambda: (x * s, s * (1 + x * (1 - s))),
        "exp": lambda: (np.exp(np.minimum(x, 4)), np.exp(np.minimum(x, 4))),
    }[op]()
    return Value(data, [(a, lambda g: g * slope)])


def softmax(a: Value) -> Value:
    e = np.exp(a.data - a.data.max(-1, keepdims=True))
    y = e / e.sum(-1, keepdims=True)
    return Value(y, [(a, lambda g: y * (g - (g * y).sum(-1, keepdims=True)))])


def rms_norm(a: Value, w: Value, eps: float = 1e-5) -> Value:
    x, n = a.data, a.data.shape[-1]
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)

    def to_x(g: np.ndarray) -> np.ndarray:
        h = g * w.data
        return r * h - x * r**3 * (h * x).sum(-1, keepdims=True) / n

    return Value(x * r * w.data, [(a, to_x), (w, lambda g: (g * x * r).reshape(-1, n).sum(0))])


def linear(a: Value, w: Value) -> Value:
    def to_w(g: np.ndarray) -> np.ndarray:
        return g.reshape(-1, g.shape[-1]).T @ a.data.reshape(-1, a.data.shape[-1])

    return Value(a.data @ w.data.T, [(a, lambda g: g @ w.data), (w, to_w)])


# ---------------------------------------------------------------------- random graphs
SHAPES: list[tuple[int, ...]] = [(), (1,), (5,), (3, 1), (3, 5), (2, 3, 5), (2, 1, 5), (17,), (4, 33)]
UNARY = ["relu", "sigmoid", "tanh", "silu", "exp"]
KINDS = [
    "add",
    "sub",
    "mul",
    "div",
    "residual",
    "neg",
    "reduce",
    "move",
    "join",
    "checkpoint",
    *UNARY,
    "softmax",
    "rms_norm",
    "linear",
]
MOST_ELEMENTS = 500
LEAST_MEAN_SQUARE = 0.05  # below, rms_norm's gain makes rounding errors large
MOST_MAGNITUDE = 50.0  # squares of squares leave float32's precision

Pair = tuple[Tensor, Value]


def broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    try:
        return len(np.broadcast_shapes(a, b)) <= 4
    except ValueError:
        return False


def leaf(rng: np.random.Generator, shape: tuple[int, ...], requires_grad: bool) -> Pair:
    data = np.asarray(rng.uniform(-1, 1, shape), dtype=np.float32)
    return Tensor(data, requires_grad=requires_grad), Value(data.astype(np.float64))


def half(value: Value) -> Value:
    return binary("mul", value, Value(np.float64(0.5)))


def grow(choose: Choose, rng: np.random.Generator, pairs: list[Pair], leaves: list[Pair]) -> Pair:
    """One more node, computed from nodes chosen at random; new leaves (weights) join `leaves`."""
    t, v = pairs[choose(len(pairs))]
    kind = KINDS[choose(len(KINDS))]
    if kind in ("add", "sub", "mul", "div"):
        fitting = [pair for pair in pairs if broadcasts(pair[0].shape, t.shape)]
        u, w = fitting[choose(len(fitting))]
        ours = t / (u * u + 1.0) if kind == "div" else getattr(autograd, kind)(t, u)
        return ours, binary(kind, v, w)
    if kind in UNARY:
        if kind == "exp" and v.data.size and v.data.max() > 3:
            return autograd.tanh(t), unary("tanh", v)
        return getattr(autograd, kind)(t), unary(kind, v)
    if kind == "residual":  # x + x * 0.5, the stream used twice
        return t + t * 0.5, binary("add", v, half(v))
    if kind == "checkpoint":
        return checkpoint(lambda x: x * x * 0.5, t), half(binary("mul", v, v))
    if t.ndim == 0 or kind == "neg":
        return -t, binary("mul", v, Value(np.float64(-1.0)))
    if kind == "softmax":
        return autograd.softmax(t), softmax(v)
    if kind == "rms_norm" and ((v.data * v.data).mean(-1) < LEAST_MEAN_SQUARE).any():
        return -t, binary("mul", v, Value(np.float64(-1.0)))
    if kind in ("rms_norm", "linear"):
        shape = (t.shape[-1],) if kind == "rms_norm" else (1 + choose(7), t.shape[-1])
        leaves.append(leaf(rng, shape, bool(choose(2))))
        w, r = leaves[-1]
        return getattr(autograd, kind)(t, w), (rms_norm if kind == "rms_norm" else linear)(v, r)
    return structural(choose, kind, t, v)


def structural(choose: Choose, kind: str, t: Tensor, v: Value) -> Pair:
    """Reductions, and ops that only move elements."""
    if kind == "reduce":
        op, axis, keepdims = ["sum", "mean", "max"][choose(3)], choose(t.ndim), bool(choose(2))
        return getattr(autograd, op)(t, axis, keepdims), reduction(op, v, axis, keepdims)
    if kind == "join":
        axis = choose(t.ndim)
        return autograd.concatenate([t, t * 2.0, t], axis), joined(
            [v, binary("mul", v, Value(np.float64(2.0))), v], axis
        )
    how = ["transpose", "flip", "flatten", "last", "new"][choose(5)]
    if how == "transpose":
        return t.T, moved(v, np.transpose)
    if how == "flatten" or (how == "new" and t.ndim > 2):
        return t.reshape(-1), moved(v, lambda x: x.reshape(-1))
    index = {"flip": slice(None, None, -1), "last": (..., slice(-2, None)), "new": (None, ..., None)}[how]
    return t[index], moved(v, lambda x: x[index])


def random_graph(choose: Choose) -> tuple[list[Pair], Pair]:
    """Leaves (some frozen), and a scalar root that every node's value went into."""
    rng = np.random.default_rng(choose(1 << 32))
    leaves = [leaf(rng, SHAPES[choose(len(SHAPES))], True)]
    leaves += [leaf(rng, SHAPES[choose(len(SHAPES))], bool(choose(2))) for _ in range(choose(4))]
    pairs = list(leaves)
    for _ in range(1 + choose(14)):
        made = grow(choose, rng, pairs, leaves)
        if made[0].size <= MOST_ELEMENTS and np.abs(made[1].data).max() < MOST_MAGNITUDE:
            pairs.append(made)
    total: Pair | None = None
    for t, v in pairs:  # fan-out: every node also feeds the result
        weights = rng.standard_normal(t.shape).astype(np.float32)
        flat = moved(binary("mul", v, Value(weights.astype(np.float64))), lambda x: x.reshape(-1))
        part = (t * weights).reshape(-1).sum(0), reduction("sum", flat, 0, False)
        total = part if total is None else (total[0] + part[0], binary("add", total[1], part[1]))
    assert total is not None
    return leaves, total


def check_graph(choose: Choose) -> None:
    """Make a graph, hold its value and gradients against float64 and clip them; AssertionError where they differ."""
    leaves, (ours, reference) = random_graph(choose)
    ours.backward()
    largest = reverse(reference, np.array(1.0))
    scale = sum(np.abs(v.data).sum() for _, v in leaves) + abs(float(reference.data)) + 1
    assert abs(ours.item() - float(reference.data)) < 1e-4 * scale, f"{ours.item()} != {reference.data}"
    for tensor, value in leaves:
        if not tensor.requires_grad:
            assert tensor.grad is None, "a frozen leaf has a gradient"
        elif value.grad is None:
            assert tensor.grad is None, "a leaf that nothing kept has a gradient"
        else:
            error = np.linalg.norm(tensor.grad.numpy() - value.grad)
            bound = 1e-4 * (np.linalg.norm(value.grad) + 1) + 1e-5 * largest
            assert error <= bound, f"gradient of shape {tensor.shape}: {error:.2e}, bound {bound:.2e}"
    check_clipping([tensor for tensor, _ in leaves if tensor.grad is not None])


def check_clipping(leaves: list[Tensor]) -> None:
    """clip_grad_norm returns the joint norm and leaves gradients of at most the norm asked for, in their direction."""
    before = [leaf.grad.numpy().astype(np.float64) for leaf in leaves]
    expected = float(np.sqrt(sum((g * g).sum() for g in before)))
    if not np.isfinite(expected):
        return
    norm = clip_grad_norm(leaves, 1.0)
    assert abs(norm - expected) <= 1e-5 * expected, f"norm {norm}, expected {expected}"
    factor = min(1.0, 1.0 / (expected + 1e-6))
    for tensor, gradient in zip(leaves, before, strict=True):
        assert np.allclose(tensor.grad.numpy(), gradient * factor, rtol=1e-4, atol=1e-30), "clipped gradients differ"
