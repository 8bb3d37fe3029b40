"""Operations in float64 NumPy with a reverse mode of their own: what random graphs are held to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

Backward = Callable[[np.ndarray], np.ndarray]


@dataclass(eq=False)
class Value:
    """A float64 array and, for each array it was computed from, the function that takes its gradient there."""

    data: np.ndarray
    parents: list[tuple[Value, Backward]] = field(default_factory=list)
    grad: np.ndarray | None = None


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


def constant(value: object) -> Value:
    return Value(np.asarray(value, np.float64))


def chain(data: np.ndarray, *parents: tuple[Value, Backward]) -> Value:
    return Value(np.asarray(data, np.float64), list(parents))


# ---------------------------------------------------------------------- arithmetic
def unbroadcast(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    gradient = gradient.sum(tuple(range(gradient.ndim - len(shape))))
    return gradient.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True).reshape(shape)


def binary(op: str, a: Value, b: Value) -> Value:
    x, y = a.data, b.data
    data, da, db = {
        "add": lambda: (x + y, lambda g: g, lambda g: g),
        "sub": lambda: (x - y, lambda g: g, lambda g: -g),
        "mul": lambda: (x * y, lambda g: g * y, lambda g: g * x),
        "div": lambda: (x / y, lambda g: g / y, lambda g: -g * x / y**2),
    }[op]()
    return chain(data, (a, lambda g: unbroadcast(da(g), x.shape)), (b, lambda g: unbroadcast(db(g), y.shape)))


def reduction(op: str, a: Value, axis: int | tuple[int, ...] | None, keepdims: bool) -> Value:
    x = a.data
    axes = tuple(range(x.ndim)) if axis is None else tuple(i % x.ndim for i in np.atleast_1d(axis))
    count = math.prod(x.shape[i] for i in axes)

    def backward(g: np.ndarray) -> np.ndarray:
        g = g if keepdims else np.expand_dims(g, axes)
        if op == "max":
            hit = x == x.max(axes, keepdims=True)
            return hit * g / hit.sum(axes, keepdims=True)
        return np.broadcast_to(g, x.shape) / (count if op == "mean" else 1)

    return chain(getattr(np, op)(x, axis=axes, keepdims=keepdims), (a, backward))


def moved(a: Value, function: Callable[[np.ndarray], np.ndarray]) -> Value:
    """Any op that only moves (or repeats, or drops) elements: its gradient puts them back."""
    places = function(np.arange(a.data.size).reshape(a.data.shape))

    def backward(g: np.ndarray) -> np.ndarray:
        return np.bincount(places.reshape(-1), g.reshape(-1), minlength=a.data.size).reshape(a.data.shape)

    return chain(function(a.data), (a, backward))


def joined(values: list[Value], axis: int) -> Value:
    ends = np.cumsum([v.data.shape[axis] for v in values])
    parts = [(v, np.arange(end - v.data.shape[axis], end)) for v, end in zip(values, ends, strict=True)]
    data = np.concatenate([v.data for v in values], axis)
    return chain(data, *[(v, lambda g, at=at: np.take(g, at, axis)) for v, at in parts])


# ---------------------------------------------------------------------- elementwise functions
def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))


ERF = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    phi = 0.5 * (1 + ERF(x / math.sqrt(2)))
    return x * phi, phi + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def gelu_tanh(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    c = math.sqrt(2 / math.pi)
    t = np.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)


UNARY: dict[str, Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "relu": lambda x: (np.maximum(x, 0), (x > 0) * 1.0),
    "sigmoid": lambda x: (sigmoid(x), sigmoid(x) * (1 - sigmoid(x))),
    "tanh": lambda x: (np.tanh(x), 1 - np.tanh(x) ** 2),
    "silu": lambda x: (x * sigmoid(x), sigmoid(x) * (1 + x * (1 - sigmoid(x)))),
    "exp": lambda x: (np.exp(x), np.exp(x)),
    "log": lambda x: (np.log(x), 1 / x),
    "sqrt": lambda x: (np.sqrt(x), 0.5 / np.sqrt(x)),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
}


def unary(op: str, a: Value) -> Value:
    data, slope = UNARY[op](a.data)
    return chain(data, (a, lambda g: g * slope))


def power(a: Value, exponent: float) -> Value:
    slope = exponent * a.data ** (exponent - 1)
    return chain(a.data**exponent, (a, lambda g: g * slope))


# ---------------------------------------------------------------------- over the last axis
def softmax(a: Value, axis: int = -1) -> Value:
    e = np.exp(a.data - a.data.max(axis, keepdims=True))
    y = e / e.sum(axis, keepdims=True)
    return chain(y, (a, lambda g: y * (g - (g * y).sum(axis, keepdims=True))))


def log_softmax(a: Value, axis: int = -1) -> Value:
    shifted = a.data - a.data.max(axis, keepdims=True)
    y = shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))
    return chain(y, (a, lambda g: g - np.exp(y) * g.sum(axis, keepdims=True)))


def rms_norm(a: Value, w: Value, eps: float = 1e-5) -> Value:
    x, n = a.data, a.data.shape[-1]
    r = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + eps)

    def to_x(g: np.ndarray) -> np.ndarray:
        h = g * w.data
        return r * h - x * r**3 * (h * x).sum(-1, keepdims=True) / n

    return chain(x * r * w.data, (a, to_x), (w, lambda g: (g * x * r).reshape(-1, n).sum(0)))


def layer_norm(a: Value, eps: float = 1e-5) -> Value:
    """Without weight and bias, which are a product and a sum."""
    centred = binary("sub", a, reduction("mean", a, -1, True))
    return rms_norm(centred, constant(np.ones(a.data.shape[-1])), eps)


# ---------------------------------------------------------------------- products
def matmul(a: Value, b: Value) -> Value:
    """NumPy's: the leading axes broadcast; a vector is a row on the left and a column on the right."""
    x, y = a.data, b.data
    if y.ndim == 1:
        return moved(matmul(a, moved(b, lambda array: array[:, None])), lambda array: array[..., 0])
    if x.ndim == 1:
        return moved(matmul(moved(a, lambda array: array[None]), b), lambda array: array[..., 0, :])
    return chain(
        x @ y,
        (a, lambda g: unbroadcast(g @ np.swapaxes(y, -1, -2), x.shape)),
        (b, lambda g: unbroadcast(np.swapaxes(x, -1, -2) @ g, y.shape)),
    )


def linear(a: Value, w: Value) -> Value:
    def to_w(g: np.ndarray) -> np.ndarray:
        return g.reshape(-1, g.shape[-1]).T @ a.data.reshape(-1, a.data.shape[-1])

    return chain(a.data @ w.data.T, (a, lambda g: g @ w.data), (w, to_w))


def lora_linear(x: Value, dropped: Value, w: Value, a: Value, b: Value, scaling: float) -> Value:
    update = linear(linear(dropped, a), b)
    return binary("add", linear(x, w), binary("mul", update, constant(scaling)))


# ---------------------------------------------------------------------- the model's own
def rope(a: Value, cos: np.ndarray, sin: np.ndarray) -> Value:
    """a (batch, seq, heads, size); cos, sin (batch or 1, seq, 1, size / 2)."""

    def rotate(x: np.ndarray, sign: float) -> np.ndarray:
        left, right = np.split(x, 2, -1)
        return np.concatenate([left * cos - sign * right * sin, right * cos + sign * left * sin], -1)

    return chain(rotate(a.data, 1.0), (a, lambda g: rotate(g, -1.0)))


def attention(q: Value, k: Value, v: Value, visible: np.ndarray, scale: float) -> Value:
    """q (batch, T, heads, size), k and v (batch, S, kv heads, size); visible (batch or 1, T, S) says who sees whom.

    A query that sees nothing gives zeros.
    """
    group = q.data.shape[2] // k.data.shape[2]

    def heads_first(x: Value, repeat: int) -> Value:
        return moved(x, lambda array: np.repeat(array, repeat, 2).transpose(0, 2, 1, 3))

    queries, keys, values = heads_first(q, 1), heads_first(k, group), heads_first(v, group)
    scores = matmul(queries, moved(keys, lambda array: np.swapaxes(array, -1, -2)))
    hidden = np.where(visible[:, None], 0.0, -1e30)
    masked = binary("add", binary("mul", scores, constant(scale)), constant(hidden))
    seen = binary("mul", softmax(masked), constant(visible.any(-1)[:, None, :, None]))
    return moved(matmul(seen, values), lambda array: array.transpose(0, 2, 1, 3))


def cross_entropy(logits: Value, targets: np.ndarray, reduction_: str, ignore_index: int = -100) -> Value:
    vocabulary = logits.data.shape[-1]
    flat, kept = targets.reshape(-1), targets.reshape(-1) != ignore_index
    chosen = np.where(kept, flat, 0)
    rows = moved(log_softmax(logits), lambda x: x.reshape(-1, vocabulary)[np.arange(flat.size), chosen])
    losses = binary("mul", rows, constant(-1.0 * kept))
    if reduction_ == "none":
        return moved(losses, lambda x: x.reshape(targets.shape))
    total = reduction("sum", losses, None, False)
    return binary("div", total, constant(kept.sum())) if reduction_ == "mean" else total
