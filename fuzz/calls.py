"""Single calls with shapes and arguments that often do not fit: the result is NumPy's, or an error of entrenar's own.

Every axis may be empty, every index out of range. Where the call succeeds, its backward must run too and give every
input a gradient of its own shape.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from nodes import Choose

from entrenar import autograd
from entrenar.autograd import QuantizedTensor, Tensor
from entrenar.autograd.weight_types import ALIASES, WEIGHT_TYPES, weight_type
from entrenar.errors import EntrenarError

SIZES = [1, 2, 3, 4, 5, 0, 17, 32, 64, 65, 130]
MOST_ELEMENTS = 4096
MOST_AXES = 8
TOLERANCE = 1e-5
QUANTIZED = [*ALIASES, *(row.name for row in WEIGHT_TYPES.values() if row.is_quantized)]

Arrays = list[np.ndarray]
# the inputs that take a gradient, the call on tensors, and what float64 arrays give (or raise)
Call = tuple[Arrays, Callable[..., Tensor], Callable[..., np.ndarray]]


class Refused(Exception):
    """What a reference raises where the call must fail and NumPy has no opinion."""


def demand(condition: bool) -> None:
    if not condition:
        raise Refused


def shape(choose: Choose, ndim: int | None = None) -> tuple[int, ...]:
    ndim = choose(5) if ndim is None else ndim
    sizes: list[int] = []
    for _ in range(ndim):
        sizes.append(SIZES[choose(len(SIZES))])
        if np.prod([max(n, 1) for n in sizes]) > MOST_ELEMENTS:
            sizes[-1] = 1
    return tuple(sizes)


def like(choose: Choose, other: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that mostly fits `other`: some axes 1, some leading ones gone, seldom one that is wrong."""
    sizes = [1 if choose(4) == 3 else n for n in other][choose(3) if choose(3) == 0 else 0 :]
    if sizes and choose(6) == 0:
        sizes[choose(len(sizes))] = SIZES[choose(len(SIZES))]
    return tuple(sizes) if np.prod([max(n, 1) for n in sizes]) <= MOST_ELEMENTS else ()


def numbers(choose: Choose, *shapes: tuple[int, ...]) -> Arrays:
    rng = np.random.default_rng(choose(256))
    return [np.asarray(rng.uniform(0.5, 2.0, one), np.float32) for one in shapes]


def axis(choose: Choose, ndim: int) -> int:
    """Mostly one that the shape has."""
    return choose(2 * ndim) - ndim if ndim and choose(8) else choose(20) - 10


# ---------------------------------------------------------------------- elementwise and products
def arithmetic(choose: Choose) -> Call:
    op = ["add", "sub", "mul", "div"][choose(4)]
    numpy_op = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}[op]
    one = shape(choose)
    return numbers(choose, one, like(choose, one)), getattr(autograd, op), numpy_op


def swiglu(choose: Choose) -> Call:
    one = shape(choose)

    def reference(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
        demand(gate.shape == up.shape)
        return gate / (1 + np.exp(-gate)) * up

    return numbers(choose, one, like(choose, one)), autograd.swiglu, reference


def matmul(choose: Choose) -> Call:
    left = shape(choose)
    k = left[-1] if left else 1
    right = like(choose, (*left[:-2], k, SIZES[choose(len(SIZES))])) if choose(4) else like(choose, (k,))
    return numbers(choose, left, right), autograd.matmul, np.matmul


def linear(choose: Choose) -> Call:
    x = shape(choose)
    w = like(choose, (SIZES[choose(len(SIZES))], x[-1] if x else 1))
    bias = like(choose, w[:1])
    with_bias = bool(choose(2))

    def reference(x: np.ndarray, w: np.ndarray, *b: np.ndarray) -> np.ndarray:
        demand(x.ndim > 0 and w.ndim == 2 and w.shape[1] == x.shape[-1])
        demand(not b or b[0].shape == w.shape[:1])
        return x @ w.T + (b[0] if b else 0)

    return numbers(choose, x, w, *[bias] * with_bias), autograd.linear, reference


def lora_linear(choose: Choose) -> Call:
    x = shape(choose)
    n, k, rank = SIZES[choose(len(SIZES))], x[-1] if x else 1, 1 + choose(5)
    w, a, b = like(choose, (n, k)), like(choose, (rank, k)), like(choose, (n, rank))

    def reference(x: np.ndarray, w: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        demand(x.ndim > 0 and w.ndim == a.ndim == b.ndim == 2 and w.shape[1] == a.shape[1] == x.shape[-1])
        demand(b.shape == (w.shape[0], a.shape[0]))
        return x @ w.T + 0.5 * (x @ a.T) @ b.T

    return numbers(choose, x, w, a, b), lambda *t: autograd.lora_linear(*t, 0.5), reference


def quantized(choose: Choose) -> Call:
    x, n, kind = shape(choose), SIZES[choose(len(SIZES))], QUANTIZED[choose(len(QUANTIZED))]
    (w,) = numbers(choose, like(choose, (n, x[-1] if x else 64)))
    block = weight_type(kind).block_size
    made: list[QuantizedTensor] = []

    def ours(x: Tensor) -> Tensor:
        made.append(QuantizedTensor.quantize(w, kind))
        return autograd.linear(x, made[0])

    def reference(x: np.ndarray) -> np.ndarray:
        demand(w.ndim == 2 and w.shape[1] % block == 0 and x.ndim > 0 and x.shape[-1] == w.shape[1])
        return x @ made[0].dequantize().astype(np.float64).T

    return numbers(choose, x), ours, reference


# ---------------------------------------------------------------------- moving elements
def reshape(choose: Choose) -> Call:
    (x,) = numbers(choose, shape(choose))
    divisors = [n for n in range(1, 9) if x.size % n == 0]
    to = [divisors[choose(len(divisors))] for _ in range(choose(4))]
    if choose(2):
        to.insert(choose(len(to) + 1), -1)
    if choose(6) == 0:
        to.insert(choose(len(to) + 1), [0, -2, 7, 2**40, 2**62 if x.size else 2, -1][choose(6)])

    def reference(a: np.ndarray) -> np.ndarray:
        demand(min(to, default=0) >= -1)  # NumPy takes any negative length for -1
        return a.reshape(to)

    return [x], lambda t: autograd.reshape(t, to), reference


def transpose(choose: Choose) -> Call:
    (x,) = numbers(choose, shape(choose))
    axes = list(np.random.default_rng(choose(64)).permutation(x.ndim))
    axes = [int(i) - x.ndim * choose(2) for i in axes]
    if choose(6) == 0:
        axes.insert(choose(len(axes) + 1), axis(choose, x.ndim))
    if axes and choose(8) == 0:
        axes[choose(len(axes))] = axis(choose, x.ndim)
    return [x], lambda t: autograd.transpose(t, axes), lambda a: a.transpose(axes)


def take(choose: Choose) -> Call:
    (x,) = numbers(choose, shape(choose))
    ends = [None, 0, 1, 2, -1, -2, 3, 16, 63, -64, 200, -200, 2**62]
    index: list = []
    for n in x.shape:
        how = choose(4)
        if how == 0:
            index.append(choose(2 * n + 2) - n - 1 if choose(3) == 0 else choose(n) if n else 0)
        elif how == 1:
            index.append(slice(None, None, [None, 1, 2, -1, -3, 0, 100, -(2**62)][choose(8)]))
        else:
            index.append(slice(ends[choose(len(ends))], ends[choose(len(ends))], [None, 1, 2, -1, -2][choose(5)]))
    for item in [None] * choose(3) + [...] * choose(2) + [0] * (choose(8) == 0):
        index.insert(choose(len(index) + 1), item)
    return [x], lambda t: t[tuple(index)], lambda a: a[tuple(index)]


def concatenate(choose: Choose) -> Call:
    one = shape(choose)
    others = [like(choose, one) if choose(3) == 0 else one for _ in range(choose(3))]
    along = axis(choose, len(one))
    return (
        numbers(choose, one, *others),
        lambda *t: autograd.concatenate(t, along),
        lambda *a: np.concatenate(a, along),
    )


# ---------------------------------------------------------------------- along axes
def reduce(choose: Choose) -> Call:
    (x,) = numbers(choose, shape(choose))
    op, keepdims = ["sum", "mean", "max"][choose(3)], bool(choose(2))
    axes = [None, axis(choose, x.ndim), tuple(axis(choose, x.ndim) for _ in range(choose(4)))][choose(3)]

    def reference(a: np.ndarray) -> np.ndarray:
        demand(a.ndim > 0 or axes in (None, ()))  # NumPy lets a scalar have an axis 0
        return getattr(np, op)(a, axis=axes, keepdims=keepdims)

    return [x], lambda t: getattr(autograd, op)(t, axes, keepdims), reference


def soft(choose: Choose) -> Call:
    (x,) = numbers(choose, shape(choose))
    log, along = bool(choose(2)), axis(choose, x.ndim)

    def reference(a: np.ndarray) -> np.ndarray:
        demand(-a.ndim <= along < a.ndim)
        e = np.exp(a)
        y = e / e.sum(along, keepdims=True)
        return np.log(y) if log else y

    return [x], lambda t: (autograd.log_softmax if log else autograd.softmax)(t, along), reference


def norm(choose: Choose) -> Call:
    x = shape(choose)
    centred, w = bool(choose(2)), like(choose, x[-1:])

    def reference(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        demand(x.ndim > 0 and x.shape[-1] > 0 and w.shape == x.shape[-1:])
        x = x - x.mean(-1, keepdims=True) if centred else x
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 0.1) * w

    if centred:
        return numbers(choose, x, w), lambda t, u: autograd.layer_norm(t, u, None, 0.1), reference
    return numbers(choose, x, w), lambda t, u: autograd.rms_norm(t, u, 0.1), reference


# ---------------------------------------------------------------------- tokens
def tokens(choose: Choose, one: tuple[int, ...], bound: int) -> np.ndarray:
    """Mostly inside [0, bound)."""
    ids = np.random.default_rng(choose(256)).integers(0, max(bound, 1), one)
    if ids.size and choose(6) == 0:
        ids.reshape(-1)[choose(ids.size)] = [-1, bound, 2**31, 2**62, -(2**62)][choose(5)]
    return ids.astype([np.int64, np.int64, np.int32, np.float32][choose(4)] if choose(3) == 0 else np.int64)


def embedding(choose: Choose) -> Call:
    (table,) = numbers(choose, shape(choose, 2 if choose(8) else None))
    ids = tokens(choose, shape(choose), table.shape[0] if table.ndim else 0)

    def reference(w: np.ndarray) -> np.ndarray:
        demand(w.ndim == 2 and ids.dtype.kind == "i" and ((ids >= 0) & (ids < w.shape[0])).all())
        return w[ids]

    return [table], lambda t: autograd.embedding(ids, t), reference


def cross_entropy(choose: Choose) -> Call:
    x = shape(choose)
    ids = tokens(choose, like(choose, x[:-1]), x[-1] if x else 1)
    if choose(2):
        ids[np.random.default_rng(choose(16)).random(ids.shape) < 0.5] = -100
    how = ["mean", "sum", "none"][choose(3)]

    def reference(x: np.ndarray) -> np.ndarray:
        kept = ids != -100
        demand(x.ndim > 0 and x.shape[-1] > 0 and ids.shape == x.shape[:-1] and ids.dtype.kind == "i")
        demand(((ids >= 0) & (ids < x.shape[-1]) | ~kept).all() and (how != "mean" or kept.any()))
        log_sum = np.log(np.exp(x).sum(-1))
        chosen = np.take_along_axis(x, np.where(kept, ids, 0)[..., None].astype(np.int64), -1)[..., 0]
        losses = np.where(kept, log_sum - chosen, 0)
        return losses if how == "none" else losses.sum() / (kept.sum() if how == "mean" else 1)

    if choose(2) or how == "none":
        return numbers(choose, x), lambda t: autograd.cross_entropy(t, ids, reduction=how), reference
    identity = np.eye(x[-1] if x else 1, dtype=np.float32)
    return numbers(choose, x), lambda t: autograd.linear_cross_entropy(t, identity, ids, reduction=how), reference


# ---------------------------------------------------------------------- heads
def rope(choose: Choose) -> Call:
    x = tuple([1, 2, 0][choose(3)] if i < 3 else 2 * (1 + choose(4)) for i in range(4))
    x = like(choose, x) if choose(6) == 0 else x
    table = like(choose, (3 + choose(3), x[-1] // 2 if x else 1)) if choose(6) == 0 else (4, (x[-1] if x else 2) // 2)
    cos, sin = numbers(choose, table, table)
    at = tokens(choose, like(choose, x[:2]) if choose(6) == 0 else x[:2], 4) if choose(2) else None

    def reference(x: np.ndarray) -> np.ndarray:
        demand(x.ndim == 4 and x.shape[3] % 2 == 0 and len(table) == 2 and table[1] == x.shape[3] // 2)
        where = np.broadcast_to(np.arange(x.shape[1]), x.shape[:2]) if at is None else at
        demand(where.shape == x.shape[:2] and where.dtype.kind == "i")
        demand(((where >= 0) & (where < table[0])).all() if at is not None else x.shape[1] <= table[0])
        c, s = (np.asarray(a, np.float64)[where][:, :, None] for a in (cos, sin))
        left, right = np.split(x, 2, -1)
        return np.concatenate([left * c - right * s, right * c + left * s], -1)

    return numbers(choose, x), lambda t: autograd.rope(t, cos, sin, at), reference


def attention(choose: Choose) -> Call:
    groups, repeat, size = 1 + choose(2), 1 + choose(3), 1 + choose(9)
    batch, length, extra, causal = choose(3), [1, 3, 70, 0][choose(4)], choose(3), bool(choose(2))
    q, k = (batch, length, groups * repeat, size), (batch, length + extra, groups, size)
    q, k = (like(choose, one) if choose(8) == 0 else one for one in (q, k))
    ends = sorted(choose(length + 2) for _ in range(choose(3)))
    packed = [0, *ends, batch * length] if choose(3) == 0 else None
    if packed is not None and choose(4) == 0:
        packed[choose(len(packed))] = [-1, 2**40, 1, 0][choose(4)]

    def reference(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
        demand(q.ndim == k.ndim == 4 and q.shape[0] == k.shape[0] and q.shape[3] == k.shape[3])
        demand(q.shape[3] > 0 and k.shape[2] > 0 and q.shape[2] > 0 and q.shape[2] % k.shape[2] == 0)
        (batch, rows, heads, size), keys = q.shape, k.shape[1]
        demand(not causal or keys >= rows)
        run = np.arange(batch).repeat(rows)
        if packed is not None:
            demand(rows == keys and packed[0] == 0 and packed[-1] == batch * rows and packed == sorted(packed))
            run = np.searchsorted(packed, np.arange(batch * rows), "right")
        k, v = (a.repeat(heads // k.shape[2], 2) for a in (k, v))
        scores = np.einsum("nihd,mjhd->nihmj", q, k) * size**-0.5
        i, j = np.arange(rows), np.arange(keys)
        same = np.broadcast_to(np.eye(batch, dtype=bool)[:, None, :, None], (batch, rows, batch, keys))
        seen = same & (~np.bool_(causal) | (i[:, None] + keys - rows >= j))[None, :, None]
        if packed is not None:
            seen = (run[:, None] == run).reshape(batch, rows, batch, keys)
            seen &= ~np.bool_(causal) | np.tri(batch * rows, dtype=bool).reshape(seen.shape)
        e = np.exp(scores) * seen[:, :, None]
        total = e.sum((3, 4), keepdims=True)
        return np.einsum("nihmj,mjhd->nihd", e / np.where(total == 0, 1, total), v)

    return numbers(choose, q, k, k), lambda *t: autograd.attention(*t, packed, causal=causal), reference


CALLS: list[Callable[[Choose], Call]] = [arithmetic, swiglu, matmul, linear, lora_linear, quantized, reshape, transpose]
CALLS += [take, concatenate, reduce, soft, norm, embedding, cross_entropy, rope, attention]


def check_call(choose: Choose) -> None:
    """Make a call and hold it to its reference; AssertionError where values, shapes or the refusal differ."""
    make = CALLS[choose(len(CALLS))]
    arrays, run, reference = make(choose)
    tensors = [Tensor(array, requires_grad=True) for array in arrays]
    what = f"{make.__name__} of {[array.shape for array in arrays]}"
    try:
        ours = run(*tensors)
    except EntrenarError as error:
        ours, message = None, str(error)
        assert message.strip(), f"{what} was refused without a word"
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing
        try:
            expected = np.asarray(reference(*(array.astype(np.float64) for array in arrays)))
        except (Refused, ValueError, IndexError, TypeError) as error:
            assert ours is None, f"{what} gave shape {ours.shape}, expected a refusal ({error!r})"
            return
    assert ours is not None or expected.ndim > MOST_AXES, f"{what} was refused: {message}"
    if ours is None:
        return
    compare(ours, expected, what)
    ours.backward(Tensor(np.ones(ours.shape, np.float32)))
    for tensor in tensors:
        if tensor.grad is not None:
            assert tensor.grad.shape == tensor.shape, f"{what}: a gradient of shape {tensor.grad.shape}"
            assert np.isfinite(tensor.grad.numpy()).all() or not np.isfinite(expected).all(), f"{what}: gradient"


def compare(ours: Tensor, expected: np.ndarray, what: str) -> None:
    assert ours.shape == expected.shape, f"{what} gave shape {ours.shape}, expected {expected.shape}"
    actual = ours.numpy().astype(np.float64)
    close = np.isclose(actual, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    assert close.all(), f"{what}: {actual[~close][0]}, expected {expected[~close][0]}"
