"""Cases of cross_entropy and linear_cross_entropy: ignored rows, reductions, chunks of the vocabulary's logits."""

from __future__ import annotations

import numpy as np

from entrenar import autograd

from .base import Case, normal
from .softmax import reference_log_softmax
from .weights import FROZEN, frozen_weight, whole_blocks

Shape = tuple[int, ...]


def make_targets(shape: Shape, vocabulary: int, ignored: float = 0.0, ignore_index: int = -100) -> np.ndarray:
    """Random targets, of which about the part `ignored` is ignore_index (the first one never is)."""
    rng = np.random.default_rng([*shape, vocabulary])
    targets = rng.integers(0, vocabulary, shape)
    drop = rng.random(shape) < ignored
    drop.reshape(-1)[:1] = False
    return np.where(drop, ignore_index, targets)


def reference_cross_entropy(
    logits: np.ndarray,
    targets: np.ndarray,
    ignore_index: int = -100,
    reduction: str = "mean",
    divisor: float | None = None,
) -> np.ndarray:
    counted = targets != ignore_index
    chosen = np.take_along_axis(reference_log_softmax(logits), np.where(counted, targets, 0)[..., None], -1)[..., 0]
    losses = np.where(counted, -chosen, 0.0)
    if reduction == "none":
        return losses
    return np.asarray(losses.sum() / (1 if reduction == "sum" else divisor or counted.sum()))


def plain_case(shape: Shape, ignored: float = 0.0, gradient: bool = True, **options: object) -> Case:
    targets = make_targets(shape[:-1], shape[-1], ignored, int(options.get("ignore_index", -100)))
    return Case(
        "cross_entropy",
        f"{shape} ignored {ignored} {options or ''}".strip(),
        normal(shape),
        lambda x: autograd.cross_entropy(x, targets, **options),
        lambda x: reference_cross_entropy(x, targets, **options),
        tolerance=2e-7,
        gradient=gradient,
    )


def fused_case(
    weight_type: str, shape: Shape, vocabulary: int, ignored: float = 0.0, gradient: bool = True, **options: object
) -> Case:
    targets = make_targets(shape[:-1], vocabulary, ignored, int(options.get("ignore_index", -100)))

    def run(x, *w):
        weight = w[0] if w else frozen_weight(weight_type, vocabulary, shape[-1])[0]
        return autograd.linear_cross_entropy(x, weight, targets, **options)

    def reference(x, *w):
        weight = w[0] if w else frozen_weight(weight_type, vocabulary, shape[-1])[1]
        logits, rest = x @ weight.T, dict(options)
        cap = rest.pop("softcap", None)
        return reference_cross_entropy(logits if cap is None else cap * np.tanh(logits / cap), targets, **rest)

    return Case(
        "linear_cross_entropy",
        f"{weight_type} {shape} to {vocabulary} ignored {ignored} {options or ''}".strip(),
        normal(shape, *([(vocabulary, shape[-1])] if weight_type == "float32" else [])),
        run,
        reference,
        tolerance=6e-7 if vocabulary > 1 << 17 else 2.5e-7,  # a running sum over the vocabulary
        gradient=gradient,
    )


WIDE = (1 << 18) + 1  # a chunk is 48 MiB of logits: 47 rows at most, so that 49 are one of 25 and one of 24
CASES = [
    *[plain_case(shape, reduction="sum") for shape in [(1, 1), (1, 7), (4, 9), (2, 3, 5), (7,)]],
    *[plain_case((5, 9), 0.4, reduction=reduction) for reduction in ("mean", "sum", "none")],
    plain_case((2, 3, 5), reduction="none"),
    plain_case((6, 5), 0.5, ignore_index=3),
    plain_case((0, 5), reduction="sum"),
    *[plain_case(shape, 0.3, gradient=False) for shape in [(300, 1001), (3, 40_003), (2, 65, 130)]],
    plain_case((65, 1000), 0.3, gradient=False, reduction="none"),
    *[fused_case("float32", shape, 9, reduction="sum") for shape in [(1, 2), (5, 3), (2, 3, 4), (3,)]],
    fused_case("float32", (6, 4), 7, 0.4),
    fused_case("float32", (6, 4), 7, 0.4, reduction="sum"),
    fused_case("float32", (6, 4), 7, 0.4, divisor=11),
    fused_case("float32", (6, 4), 7, 0.5, ignore_index=2),
    *[fused_case("float32", (6, 4), 7, 0.4, softcap=cap) for cap in (0.8, 30.0)],
    fused_case("q4_0", (2, 40, 128), 301, 0.3, gradient=False, softcap=5.0),
    fused_case("float32", (49, 3), WIDE, gradient=False, softcap=3.0),
    *[fused_case(weight_type, (3, whole_blocks(weight_type, 64)), 5, 0.3, reduction="sum") for weight_type in FROZEN],
    *[
        fused_case(weight_type, (2, 40, whole_blocks(weight_type, 128)), 301, 0.3, gradient=False)
        for weight_type in ("float32", *FROZEN)
    ],
    fused_case("float32", (49, 3), WIDE, gradient=False),
    # every row ignored: no loss, no gradient
    Case(
        "linear_cross_entropy",
        "nothing counted",
        normal((3, 4), (5, 4)),
        lambda x, w: autograd.linear_cross_entropy(x, w, np.full(3, -100), reduction="sum"),
        lambda x, w: np.zeros(()),
        tolerance=0.0,
    ),
    Case(
        "cross_entropy",
        "nothing counted",
        normal((3, 4)),
        lambda x: autograd.cross_entropy(x, np.full(3, -100), reduction="sum"),
        lambda x: np.zeros(()),
        tolerance=0.0,
    ),
]
