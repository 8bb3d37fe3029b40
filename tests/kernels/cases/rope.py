"""Cases of rope, and the float64 reference that its other tests use too."""

from __future__ import annotations

import numpy as np

from entrenar.autograd.ops.rope import rope, rope_table

from .base import Case, normal

Shape = tuple[int, int, int, int]  # batch, length, heads, head size


def inverse_frequencies(dim: int, theta: float = 10000.0) -> np.ndarray:
    return theta ** (-np.arange(0, dim, 2) / dim)


def reference_rope(x: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
    """Rotation of the pairs (i, i + dim / 2) as multiplication of complex numbers."""
    batch, length, _, dim = x.shape
    if positions is None:
        positions = np.broadcast_to(np.arange(length), (batch, length))
    turn = np.exp(1j * positions[:, :, None, None] * inverse_frequencies(dim))
    y = (x[..., : dim // 2] + 1j * x[..., dim // 2 :]) * turn
    return np.concatenate([y.real, y.imag], -1)


def case(
    label: str, shape: Shape, positions: np.ndarray | None = None, gradient: bool = True, rotated: int | None = None
) -> Case:
    width = rotated or shape[-1]
    table = rope_table(512, inverse_frequencies(width))
    return Case(
        op="rope",
        label=f"{label} {'x'.join(map(str, shape))}",
        inputs=normal(shape),
        run=lambda x: rope(x, *table, positions=positions, partial=rotated is not None),
        reference=lambda x: np.concatenate([reference_rope(x[..., :width], positions), x[..., width:]], -1),
        tolerance=1e-7,
        gradient=gradient,
    )


CASES = [
    case("one pair", (1, 1, 1, 2)),
    case("second position", (1, 2, 1, 2)),
    case("odd half", (2, 3, 2, 6)),
    case("head size 48", (1, 2, 3, 48)),
    case("positions", (2, 3, 2, 10), np.array([[5, 0, 511], [1, 1, 2]], np.int32)),
    case("a part of a head", (2, 3, 2, 13), rotated=6),
    case("a part of a head, positions", (1, 2, 3, 48), np.array([[7, 3]]), rotated=36),
    case("large, a part of a head", (2, 130, 9, 64), gradient=False, rotated=48),
    case("large", (2, 300, 9, 64), gradient=False),
    case("large, positions", (2, 130, 8, 48), np.arange(260, dtype=np.int64).reshape(2, 130), gradient=False),
]
