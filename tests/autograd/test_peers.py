"""Every operation, values and gradients, against PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from entrenar import autograd
from entrenar.autograd import Tensor, manual_seed

torch = pytest.importorskip("torch")
F = torch.nn.functional

pytestmark = [pytest.mark.peers, pytest.mark.gradient]
TOLERANCE = 1e-5  # norm-wise, relative


@dataclass(frozen=True)
class Peer:
    """One call of ours and of torch's on the same inputs; `frozen` lists those that take no gradient."""

    op: str
    label: str
    inputs: Callable[[np.random.Generator], list[np.ndarray]]
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    frozen: tuple[int, ...] = ()


def normal(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], list[np.ndarray]]:
    return lambda rng: [np.asarray(rng.standard_normal(shape), dtype=np.float32) for shape in shapes]


def positive(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator], list[np.ndarray]]:
    return lambda rng: [np.asarray(rng.uniform(0.2, 3.0, shape), dtype=np.float32) for shape in shapes]


def whole(low: int, high: int, *shapes: tuple[int, ...]) -> Callable[[np.random.Generator], list[np.ndarray]]:
    """Whole numbers, so that many of them are equal."""
    return lambda rng: [rng.integers(low, high, shape).astype(np.float32) for shape in shapes]


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    size = float(np.linalg.norm(theirs))
    return float(np.linalg.norm(ours.astype(np.float64) - theirs)) / (size or 1.0)


def results(peer: Peer) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """(name, ours, theirs) of the value and of every input's gradient, for one random gradient of the output."""
    arrays = peer.inputs(np.random.default_rng(5))
    wanted = [i for i in range(len(arrays)) if i not in peer.frozen]
    mine = [Tensor(a, requires_grad=i in wanted) for i, a in enumerate(arrays)]
    other = [torch.tensor(a.astype(np.float64), requires_grad=i in wanted) for i, a in enumerate(arrays)]
    out, expected = peer.ours(*mine), peer.theirs(*other)
    found = [("value", out.numpy(), expected.detach().numpy())]
    if wanted:
        seed = np.asarray(np.random.default_rng(6).standard_normal(out.shape), dtype=np.float32)
        out.backward(seed)
        expected.backward(torch.tensor(seed.astype(np.float64)))
    for i in wanted:
        assert mine[i].grad is not None, f"input {i} has no gradient"
        found.append((f"gradient of input {i}", mine[i].grad.numpy(), other[i].grad.numpy()))
    return found


# ---------------------------------------------------------------------------------- elementwise and shapes
SMOOTH: dict[str, tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]] = {
    "relu": (normal, autograd.relu, torch.relu),
    "silu": (normal, autograd.silu, F.silu),
    "sigmoid": (normal, autograd.sigmoid, torch.sigmoid),
    "tanh": (normal, autograd.tanh, torch.tanh),
    "exp": (normal, autograd.exp, torch.exp),
    "neg": (normal, autograd.neg, torch.neg),
    "log": (positive, autograd.log, torch.log),
    "sqrt": (positive, autograd.sqrt, torch.sqrt),
}
PEERS = [Peer(op, "7x130", inputs((7, 130)), ours, theirs) for op, (inputs, ours, theirs) in SMOOTH.items()]
PEERS += [
    Peer(op, "wide range", lambda rng: [np.linspace(-30, 30, 1001, dtype=np.float32)], ours, theirs)
    for op, (inputs, ours, theirs) in SMOOTH.items()
    if inputs is normal
]
PEERS += [
    Peer(
        "gelu",
        f"{approximate} {label}",
        inputs,
        lambda x, a=approximate: autograd.gelu(x, approximate=a),
        lambda x, a=approximate: F.gelu(x, approximate=a),
    )
    for approximate in ("none", "tanh")
    for label, inputs in (
        ("7x130", normal((7, 130))),
        ("to 8", lambda rng: [np.linspace(-8, 8, 999).astype("f4")]),
    )
]
PEERS += [
    Peer("pow", f"exponent {e}", positive((6, 70)), lambda x, e=e: autograd.pow(x, e), lambda x, e=e: x**e)
    for e in (0, 1, 2, 3, 7, 0.5, -0.5, -1, -2, 2.5)
]
PEERS += [
    Peer("pow", f"negative base, exponent {e}", normal((6, 70)), lambda x, e=e: autograd.pow(x, e), lambda x, e=e: x**e)
    for e in (1, 2, 3)
]
BROADCASTS = [
    ((4, 5), (4, 5)),
    ((4, 5), (5,)),
    ((4, 1), (1, 5)),
    ((3, 1, 5), (4, 1)),
    ((2, 3, 4), ()),
    ((1,), (2, 3, 4)),
    ((2, 1, 4, 1, 3), (5, 1, 7, 1)),
]
PEERS += [
    Peer(op, f"{a} {b}", positive(a, b), getattr(autograd, op), getattr(torch, op))
    for op in ("add", "sub", "mul", "div")
    for a, b in BROADCASTS
]
PEERS += [
    Peer("reshape", "4x6 to 2,-1,3", normal((4, 6)), lambda x: x.reshape(2, -1, 3), lambda x: x.reshape(2, -1, 3)),
    Peer("transpose", "reversed", normal((3, 4, 5)), lambda x: x.T, lambda x: x.permute(2, 1, 0)),
    Peer("transpose", "0213", normal((2, 3, 4, 5)), lambda x: x.transpose(0, 2, 1, 3), lambda x: x.transpose(1, 2)),
    Peer("slice", "steps", normal((7, 8, 9)), lambda x: x[1:6:2, 3, -4:], lambda x: x[1:6:2, 3, -4:]),
    Peer("slice", "new axis", normal((7, 8)), lambda x: x[..., None, 2:5], lambda x: x[..., None, 2:5]),
    Peer(
        "concatenate",
        "middle axis",
        normal((2, 3, 4), (2, 1, 4), (2, 5, 4)),
        lambda *xs: autograd.concatenate(xs, 1),
        lambda *xs: torch.cat(xs, 1),
    ),
    Peer("swiglu", "6x35", normal((6, 35), (6, 35)), autograd.swiglu, lambda gate, up: F.silu(gate) * up),
    Peer(
        "geglu",
        "6x35",
        normal((6, 35), (6, 35)),
        autograd.geglu,
        lambda gate, up: F.gelu(gate, approximate="tanh") * up,
    ),
    Peer("softcap", "6x35", normal((6, 35)), lambda x: autograd.softcap(x, 0.7), lambda x: 0.7 * (x / 0.7).tanh()),
    Peer("swiglu", "one tensor", normal((6, 35)), lambda x: autograd.swiglu(x, x), lambda x: F.silu(x) * x),
]


# ---------------------------------------------------------------------------------- reductions, softmax, norms
AXES = [None, 0, -1, (0, 2), (1, 2)]
PEERS += [
    Peer(
        op,
        f"axis {axis}{' keepdims' * keep}",
        normal((4, 5, 33)),
        lambda x, op=op, axis=axis, keep=keep: getattr(autograd, op)(x, axis, keep),
        lambda x, name=name, axis=axis, keep=keep: getattr(torch, name)(
            x, (0, 1, 2) if axis is None else axis, keepdim=keep
        ),
    )
    for op, name in (("sum", "sum"), ("mean", "mean"), ("max", "amax"))
    for axis in AXES
    for keep in (False, True)
]
# ties share the gradient evenly, which is torch.amax's rule (torch.max gives all of it to one)
PEERS += [
    Peer(
        "max",
        f"ties, axis {axis}",
        whole(0, 4, (4, 5, 6)),
        lambda x, axis=axis: x.max(axis),
        lambda x, axis=axis: torch.amax(x, axis),
    )
    for axis in (0, 1, (0, 2))
]
PEERS += [
    Peer(
        op,
        f"axis {axis}, scale {scale}",
        normal((5, 7, 41)),
        lambda x, op=op, axis=axis, scale=scale: getattr(autograd, op)(x * scale, axis),
        lambda x, op=op, axis=axis, scale=scale: getattr(F, op)(x * scale, axis),
    )
    for op in ("softmax", "log_softmax")
    for axis in (-1, 0, 1)
    for scale in (1.0, 20.0)
]
for width in (16, 33, 576):
    PEERS += [
        Peer(
            "layer_norm",
            f"affine {width}",
            normal((3, 5, width), (width,), (width,)),
            autograd.layer_norm,
            lambda x, w, b: F.layer_norm(x, w.shape, w, b),
        ),
        Peer(
            "rms_norm",
            f"{width}",
            normal((3, 5, width), (width,)),
            autograd.rms_norm,
            lambda x, w: F.rms_norm(x, w.shape, w, eps=1e-5),
        ),
    ]
PEERS += [
    Peer("layer_norm", "plain", normal((9, 20)), autograd.layer_norm, lambda x: F.layer_norm(x, (20,))),
    Peer(
        "layer_norm",
        "weight only, shifted, eps",
        lambda rng: [rng.standard_normal((9, 20)).astype(np.float32) + 3, *normal((20,))(rng)],
        lambda x, w: autograd.layer_norm(x, w, eps=0.1),
        lambda x, w: F.layer_norm(x, (20,), w, eps=0.1),
    ),
    Peer(
        "rms_norm",
        "eps",
        normal((9, 20), (20,)),
        lambda x, w: autograd.rms_norm(x, w, eps=0.5),
        lambda x, w: F.rms_norm(x, (20,), w, eps=0.5),
    ),
]


# ---------------------------------------------------------------------------------- losses and tables
ROWS, VOCABULARY, HIDDEN = 23, 301, 19
TARGETS = np.random.default_rng(9).integers(0, VOCABULARY, ROWS)
SOME_IGNORED = np.where(np.arange(ROWS) % 3 == 1, -100, TARGETS)
OTHER_IGNORED = np.where(np.arange(ROWS) % 4 == 0, 7, TARGETS)
for label, targets, ignore in (
    ("all", TARGETS, -100),
    ("some ignored", SOME_IGNORED, -100),
    ("ignore 7", OTHER_IGNORED, 7),
):
    labels = torch.tensor(targets)
    PEERS += [
        Peer(
            "cross_entropy",
            f"{label}, {reduction}",
            normal((ROWS, VOCABULARY)),
            lambda x, t=targets, i=ignore, r=reduction: autograd.cross_entropy(x * 3.0, t, ignore_index=i, reduction=r),
            lambda x, t=labels, i=ignore, r=reduction: F.cross_entropy(x * 3.0, t, ignore_index=i, reduction=r),
        )
        for reduction in ("mean", "sum", "none")
    ]
    PEERS += [
        Peer(
            "linear_cross_entropy",
            f"{label}, {reduction}",
            normal((ROWS, HIDDEN), (VOCABULARY, HIDDEN)),
            lambda x, w, t=targets, i=ignore, r=reduction: autograd.linear_cross_entropy(
                x, w, t, ignore_index=i, reduction=r
            ),
            lambda x, w, t=labels, i=ignore, r=reduction: F.cross_entropy(x @ w.T, t, ignore_index=i, reduction=r),
        )
        for reduction in ("mean", "sum")
    ]
SHARED = np.array([[3, 1, 3, 3], [0, 29, 1, 3]])
FLAT = torch.tensor(SHARED).reshape(8)
PEERS += [
    Peer(
        "cross_entropy",
        "three axes",
        normal((2, 4, 30)),
        lambda x: autograd.cross_entropy(x, SHARED),
        lambda x: F.cross_entropy(x.reshape(8, 30), FLAT),
    ),
    Peer(
        "linear_cross_entropy",
        "divisor",
        normal((2, 4, HIDDEN), (30, HIDDEN)),
        lambda x, w: autograd.linear_cross_entropy(x, w, SHARED, divisor=100.0),
        lambda x, w: F.cross_entropy(x.reshape(8, HIDDEN) @ w.T, FLAT, reduction="sum") / 100,
    ),
    Peer(
        "linear_cross_entropy",
        "scaled loss, tied to the input's table",
        normal((30, HIDDEN)),
        lambda w: autograd.linear_cross_entropy(autograd.embedding(SHARED, w), w, SHARED[::-1]) * 0.25,
        lambda w: F.cross_entropy(w[FLAT] @ w.T, torch.tensor(SHARED[::-1].copy()).reshape(8)) * 0.25,
    ),
    Peer(
        "embedding",
        "repeated tokens",
        normal((30, 17)),
        lambda w: autograd.embedding(SHARED, w),
        lambda w: F.embedding(torch.tensor(SHARED), w),
    ),
]


# ---------------------------------------------------------------------------------- products
PRODUCTS = [
    ((5, 7), (7, 3)),
    ((70, 130), (130, 50)),
    ((4, 5, 7), (4, 7, 3)),
    ((4, 5, 7), (7, 3)),
    ((5, 7), (4, 7, 3)),
    ((2, 1, 5, 7), (3, 7, 3)),
    ((1, 3, 5, 7), (2, 1, 7, 3)),
    ((7,), (7,)),
    ((5, 7), (7,)),
    ((7,), (7, 3)),
    ((4, 5, 7), (7,)),
    ((7,), (4, 7, 3)),
]
PEERS += [Peer("matmul", f"{a} {b}", normal(a, b), autograd.matmul, torch.matmul) for a, b in PRODUCTS]
PEERS += [
    Peer("matmul", "one tensor", normal((6, 6)), lambda x: x @ x, lambda x: x @ x),
    Peer("linear", "bias", normal((2, 9, 70), (33, 70), (33,)), autograd.linear, F.linear),
    Peer("linear", "one row", normal((1, 64), (100, 64)), autograd.linear, F.linear),
    Peer("linear", "frozen weight", normal((9, 64), (100, 64)), autograd.linear, F.linear, frozen=(1,)),
    Peer(
        "lora_linear",
        "rank 4",
        normal((2, 9, 40), (33, 40), (4, 40), (33, 4)),
        lambda x, w, a, b: autograd.lora_linear(x, w, a, b, 2.0),
        lambda x, w, a, b: F.linear(x, w) + 2.0 * F.linear(F.linear(x, a), b),
    ),
]


def kept(shape: Sequence[int], p: float) -> np.ndarray:
    """The factors, 0 or 1 / (1 - p), of the first dropout after the seed that the cases set."""
    manual_seed(3)
    return autograd.dropout(Tensor(np.ones(shape)), p).numpy().astype(np.float64)


def seeded(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*tensors: Any) -> Any:
        manual_seed(3)
        return function(*tensors)

    return run


PEERS += [
    Peer(
        "dropout",
        "the mask that was drawn",
        normal((19, 31)),
        seeded(lambda x: autograd.dropout(x, 0.3)),
        lambda x: x * torch.tensor(kept((19, 31), 0.3)),
    ),
    Peer(
        "lora_linear",
        "dropout",
        normal((18, 40), (33, 40), (4, 40), (33, 4)),
        seeded(lambda x, w, a, b: autograd.lora_linear(x, w, a, b, 0.5, dropout=0.25)),
        lambda x, w, a, b: F.linear(x, w) + 0.5 * F.linear(F.linear(x * torch.tensor(kept((18, 40), 0.25)), a), b),
    ),
    Peer(
        "lora_linear",
        "bias",
        normal((18, 40), (33, 40), (4, 40), (33, 4), (33,)),
        lambda x, w, a, b, bias: autograd.lora_linear(x, w, a, b, 0.5, bias=bias),
        lambda x, w, a, b, bias: F.linear(x, w, bias) + 0.5 * F.linear(F.linear(x, a), b),
    ),
    Peer(
        "grouped_linear",
        "biases, and adapters on one",
        normal((18, 40), (33, 40), (17, 40), (33,), (17,), (4, 40), (17, 4)),
        lambda x, w, v, b, c, low, up: autograd.concatenate(
            autograd.grouped_linear(x, [w, v], [b, c], [None, autograd.LowRankUpdate(low, up, 0.5)]), axis=-1
        ),
        lambda x, w, v, b, c, low, up: torch.cat(
            [F.linear(x, w, b), F.linear(x, v, c) + 0.5 * F.linear(F.linear(x, low), up)], dim=-1
        ),
    ),
]


# ---------------------------------------------------------------------------------- attention and rope
def sdpa(q: Any, k: Any, v: Any, **options: Any) -> Any:
    """torch's attention on tensors laid out as ours: (batch, length, heads, head size)."""
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **options).transpose(1, 2)


def heads(batch: int, length: int, queries: int, keys: int, size: int, longer: int = 0) -> Any:
    kv = (batch, length + longer, keys, size)
    return normal((batch, length, queries, size), kv, kv)


def packed(q: Any, k: Any, v: Any) -> Any:
    """Two rows of 20 tokens that hold sequences of 13, 17 and 10."""
    runs = [t.reshape(1, 40, *t.shape[2:]).split([13, 17, 10], 1) for t in (q, k, v)]
    return torch.cat([sdpa(*part, is_causal=True) for part in zip(*runs, strict=True)], 1).reshape(q.shape)


for shape in ((2, 37, 9, 3, 16), (1, 70, 8, 2, 48), (2, 65, 4, 4, 20), (1, 33, 6, 1, 64)):
    PEERS += [
        Peer(
            "attention",
            "causal " + "x".join(map(str, shape)),
            heads(*shape),
            autograd.attention,
            lambda q, k, v: sdpa(q, k, v, is_causal=True),
        )
    ]
MASK = torch.ones(12, 30, dtype=torch.bool).tril(18)
PEERS += [
    Peer(
        "attention",
        "bidirectional, scale",
        heads(1, 30, 6, 2, 16),
        lambda q, k, v: autograd.attention(q, k, v, causal=False, scale=0.1),
        lambda q, k, v: sdpa(q, k, v, scale=0.1),
    ),
    Peer(
        "attention",
        "more keys than queries",
        heads(2, 12, 6, 2, 16, longer=18),
        autograd.attention,
        lambda q, k, v: sdpa(q, k, v, attn_mask=MASK),
    ),
    Peer(
        "attention",
        "packed",
        heads(2, 20, 6, 2, 16),
        lambda q, k, v: autograd.attention(q, k, v, cu_seqlens=[0, 13, 30, 40]),
        packed,
    ),
    Peer(
        "attention",
        "one tensor",
        normal((1, 21, 3, 8)),
        lambda x: autograd.attention(x, x, x),
        lambda x: sdpa(x, x, x, is_causal=True),
    ),
    Peer(
        "cached_attention",
        "a chunk of 12 after 18",
        heads(2, 12, 6, 2, 16, longer=40),
        lambda q, k, v: autograd.cached_attention(q, k, v, 30),
        lambda q, k, v: sdpa(q, k[:, :30], v[:, :30], attn_mask=MASK),
        frozen=(0, 1, 2),
    ),
    Peer(
        "cached_attention",
        "one token",
        heads(2, 1, 9, 3, 64, longer=99),
        lambda q, k, v: autograd.cached_attention(q, k, v, 77),
        lambda q, k, v: sdpa(q, k[:, :77], v[:, :77]),
        frozen=(0, 1, 2),
    ),
]
POSITIONS = np.array([[5, 0, 63, 7, 7], [1, 2, 3, 4, 40]])
FREQUENCIES = 10000.0 ** (-np.arange(0, 24, 2) / 24)


def rotated(x: Any, positions: np.ndarray) -> Any:
    """transformers' rotate_half form."""
    angles = torch.tensor(np.concatenate([positions[..., None] * FREQUENCIES] * 2, -1))[:, :, None]
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


PEERS += [
    Peer(
        "rope",
        "positions",
        normal((2, 5, 3, 24)),
        lambda x: autograd.rope(x, *autograd.rope_table(64, FREQUENCIES), positions=POSITIONS),
        lambda x: rotated(x, POSITIONS),
    ),
    Peer(
        "rope",
        "in order",
        normal((2, 5, 3, 24)),
        lambda x: autograd.rope(x, *autograd.rope_table(64, FREQUENCIES)),
        lambda x: rotated(x, np.broadcast_to(np.arange(5), (2, 5))),
    ),
]


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: f"{peer.op}[{peer.label}]")
def test_values_and_gradients_agree_with_torch(peer: Peer) -> None:
    for name, ours, theirs in results(peer):
        assert ours.shape == theirs.shape, name
        assert relative_error(ours, theirs) <= TOLERANCE, name


@pytest.mark.architecture
def test_every_registered_operation_is_compared() -> None:
    compared = {peer.op for peer in PEERS}
    assert compared == set(autograd.OPS), f"OPS and PEERS differ: {sorted(compared ^ set(autograd.OPS))}"


def test_the_comparison_notices_a_slightly_wrong_gradient() -> None:
    wrong = Peer("mul", "", normal((4, 5)), lambda x: x * x, lambda x: x * x + 3e-5 * x)
    assert max(relative_error(ours, theirs) for _, ours, theirs in results(wrong)) > TOLERANCE
