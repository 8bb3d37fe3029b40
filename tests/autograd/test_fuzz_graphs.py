"""Random graphs of ops against a reverse mode of its own in float64 NumPy: reuse, residuals, broadcasts, fan-out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrenar import autograd
from entrenar.autograd import Tensor, checkpoint


# ---------------------------------------------------------------------- the reference
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


def reverse(root: Value, gradient: np.ndarray) -> None:
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
    for value in reversed(order):
        for parent, function in value.parents:
            if value.grad is not None:
                part = function(value.grad)
                parent.grad = part if parent.grad is None else parent.grad + part


# ---------------------------------------------------------------------- random graphs
SHAPES = [(), (1,), (5,), (3, 1), (3, 5), (2, 3, 5), (2, 1, 5)]


def broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    try:
        return len(np.broadcast_shapes(a, b)) <= 4
    except ValueError:
        return False


def grow(draw: Callable[[st.SearchStrategy[Any]], Any], pairs: list[tuple[Tensor, Value]]) -> tuple[Tensor, Value]:
    """One more node, computed from nodes chosen at random."""
    t, v = draw(st.sampled_from(pairs))
    kind = draw(
        st.sampled_from(["add", "sub", "mul", "div", "residual", "neg", "reduce", "move", "join", "checkpoint"])
    )
    if kind in ("add", "sub", "mul", "div"):
        u, w = draw(st.sampled_from([pair for pair in pairs if broadcasts(pair[0].shape, t.shape)]))
        ours = t / (u * u + 1.0) if kind == "div" else getattr(autograd, kind)(t, u)
        return ours, binary(kind, v, w)
    if kind == "residual":  # x + x * 0.5, the stream used twice
        return t + t * 0.5, binary("add", v, binary("mul", v, Value(np.float64(0.5))))
    if kind == "checkpoint":
        return checkpoint(lambda x: x * x * 0.5, t), binary("mul", binary("mul", v, v), Value(np.float64(0.5)))
    if kind == "reduce" and t.ndim:
        op = draw(st.sampled_from(["sum", "mean", "max"]))
        axis, keepdims = draw(st.integers(-t.ndim, t.ndim - 1)), draw(st.booleans())
        return getattr(autograd, op)(t, axis, keepdims), reduction(op, v, axis, keepdims)
    if kind == "move" and t.ndim:
        how = draw(st.sampled_from(["transpose", "flip", "flatten", "last", "new"]))
        index = {"flip": slice(None, None, -1), "last": (..., slice(-2, None)), "new": (None, ..., None)}.get(how)
        if how == "transpose":
            return t.T, moved(v, np.transpose)
        if how == "flatten":
            return t.reshape(-1), moved(v, lambda x: x.reshape(-1))
        if how != "new" or t.ndim < 3:
            return t[index], moved(v, lambda x: x[index])
    if kind == "join" and t.ndim:
        axis = draw(st.integers(0, t.ndim - 1))
        return autograd.concatenate([t, t * 2.0, t], axis), joined(
            [v, binary("mul", v, Value(np.float64(2.0))), v], axis
        )
    return -t, binary("mul", v, Value(np.float64(-1.0)))


@st.composite
def graphs(draw: Any) -> tuple[list[tuple[Tensor, Value]], tuple[Tensor, Value]]:
    """Leaves (one of them frozen at times), and a root that every node's value went into."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    leaves = []
    for shape in draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4)):
        data = np.asarray(rng.uniform(-1, 1, shape), dtype=np.float32)
        leaves.append((Tensor(data, requires_grad=not leaves or draw(st.booleans())), Value(data.astype(np.float64))))
    pairs = list(leaves)
    for _ in range(draw(st.integers(1, 14))):
        made = grow(draw, pairs)
        if made[0].size <= 500 and np.abs(made[1].data).max() < 50:  # squares of squares leave float32's precision
            pairs.append(made)
    total: tuple[Tensor, Value] | None = None
    for t, v in pairs:  # fan-out: every node also feeds the result
        weights = rng.standard_normal(t.shape).astype(np.float32)
        flat = moved(binary("mul", v, Value(weights.astype(np.float64))), lambda x: x.reshape(-1))
        part = (t * weights).reshape(-1).sum(0), reduction("sum", flat, 0, False)
        total = part if total is None else (total[0] + part[0], binary("add", total[1], part[1]))
    assert total is not None
    return leaves, total


@pytest.mark.property
@pytest.mark.gradient
@settings(max_examples=150, deadline=None)
@given(graph=graphs())
def test_values_and_gradients_agree_with_float64(graph):
    leaves, (ours, reference) = graph
    ours.backward()
    reverse(reference, np.float64(1.0))
    scale = sum(np.abs(v.data).sum() for _, v in leaves) + abs(float(reference.data)) + 1
    assert abs(ours.item() - float(reference.data)) < 1e-4 * scale
    for tensor, value in leaves:
        if not tensor.requires_grad:
            assert tensor.grad is None
            continue
        error = np.linalg.norm(tensor.grad.numpy() - value.grad)
        assert error <= 1e-4 * (np.linalg.norm(value.grad) + 1), f"shape {tensor.shape}: {error:.2e}"
