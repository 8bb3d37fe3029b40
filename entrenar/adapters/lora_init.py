"""First values of LoRA's A and B, by name as in PEFT's `init_lora_weights`; some take a part of the base's weight.

PiSSA: Meng et al., 2024 (arXiv 2404.02948). LoftQ: Li et al., 2023 (arXiv 2310.08659). Randomized SVD: Halko,
Martinsson and Tropp, 2011 (arXiv 0909.4061).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from entrenar.autograd import Tensor
from entrenar.autograd.quantized import QuantizedTensor
from entrenar.config import nearest, shown
from entrenar.errors import ConfigError
from entrenar.nn.module import Weight

PISSA = re.compile(r"pissa(?:_niter_(\d{1,3}))?")
NAMES = ("true", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "loftq")
REFUSED = {
    "eva": "chooses ranks and first values by activations on data",
    "corda": "chooses first values by activations on data",
    "lora_ga": "chooses first values by gradients on data",
    "olora": "takes a part of the base as PiSSA does, which has the better one",
    "mica": "freezes B",
}


@dataclass(frozen=True)
class Start:
    """What an adapter begins with: A (rank, in), B (out, rank), and the base's weight where it is another now."""

    a: np.ndarray
    b: np.ndarray
    weight: Weight | None = None
    takes_from_base: bool = False  # whether the base's weight is what A and B leave of it


def check_init(value: bool | str, where: str) -> None:
    """ConfigError for a name that is none of ours."""
    if value is True or (isinstance(value, str) and (value in NAMES[1:] or PISSA.fullmatch(value))):
        return
    if value is False:
        raise ConfigError(f"{where} is false, which begins with an update of noise; expected {', '.join(NAMES)}.")
    if value in REFUSED:
        raise ConfigError(
            f"{where} is {value!r}, which {REFUSED[value]} and is not supported; expected one of {', '.join(NAMES)}."
        )
    raise ConfigError(f"{where} is {shown(value)}; {nearest(str(value), NAMES)}")


def takes_from_base(value: bool | str) -> bool:
    """Whether the base is another afterwards, by what the adapter begins with (PiSSA)."""
    return isinstance(value, str) and PISSA.fullmatch(value) is not None


def needs_original(value: bool | str) -> bool:
    """Whether a base in 4 bits must be made from weights in full precision that are still there."""
    return value == "loftq" or takes_from_base(value)


def default_a(rank: int, in_features: int, rng: np.random.Generator) -> np.ndarray:
    """Kaiming-uniform noise, as PEFT's."""
    bound = 1.0 / math.sqrt(in_features)
    return rng.uniform(-bound, bound, (rank, in_features)).astype(np.float32)


def start(
    value: bool | str,
    weight: Weight,
    rank: int,
    scaling: float,
    rng: np.random.Generator,
    *,
    original: Callable[[], np.ndarray | None],
    iterations: int,
) -> Start:
    """What the adapter of `rank` on this weight (out, in) begins with; ConfigError where the weight does not allow it.

    `original` gives the full-precision weights that a quantized one was made of, `iterations` is LoftQ's.
    """
    (out, width), zeros = weight.shape, np.zeros((weight.shape[0], rank), np.float32)
    if value is True:
        return Start(default_a(rank, width, rng), zeros)
    if value == "gaussian":
        return Start((rng.standard_normal((rank, width)) / rank).astype(np.float32), zeros)
    if value == "orthogonal":
        return Start(*_orthogonal(rank, out, width, rng))
    if rank > min(out, width):
        raise ConfigError(
            f"init_lora_weights is {value!r}, and rank {rank} is above the {min(out, width)} singular values of a "
            f"weight of shape {weight.shape}; use a lower rank."
        )
    if value == "loftq":
        return _loftq(weight, rank, scaling, original, iterations)
    return _pissa(str(value), weight, rank, scaling, rng, original)


def _orthogonal(rank: int, out: int, width: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A and B from the even and the odd rows of an orthogonal matrix: B A is zero, neither of both is."""
    if rank % 2:
        raise ConfigError(f"init_lora_weights is 'orthogonal', and a rank is {rank}; expected an even one.")
    q, _ = np.linalg.qr(rng.standard_normal((rank, rank)))
    a = (rng.standard_normal((width, rank // 2)) @ q[0::2]).T / 10
    b = rng.standard_normal((out, rank // 2)) @ q[1::2] / 10
    return np.ascontiguousarray(a, np.float32), np.ascontiguousarray(b, np.float32)


def _pissa(
    value: str,
    weight: Weight,
    rank: int,
    scaling: float,
    rng: np.random.Generator,
    original: Callable[[], np.ndarray | None],
) -> Start:
    """B A from the largest singular values; the base keeps the rest, quantized again where it was (QPiSSA)."""
    values = weight.numpy().astype(np.float32) if isinstance(weight, Tensor) else _original(value, weight, original)
    match = PISSA.fullmatch(value)
    assert match is not None  # held by check_init
    a, b = _factors(*_largest(values, rank, match[1], rng), scaling)
    rest = (values - scaling * (b.astype(np.float64) @ a)).astype(np.float32)
    if isinstance(weight, QuantizedTensor):
        return Start(a, b, _requantized(rest, weight), True)
    return Start(a, b, Tensor(rest, dtype=weight.dtype), True)


def _loftq(
    weight: Weight, rank: int, scaling: float, original: Callable[[], np.ndarray | None], iterations: int
) -> Start:
    """B A nearest to what the quantization lost; from the second iteration on what is quantized is the weight without
    B A, and the quantized values change."""
    if not isinstance(weight, QuantizedTensor):
        raise ConfigError(
            f"init_lora_weights is 'loftq', which repairs the error of a base in 4 bits, and the base is "
            f'{weight.dtype}; quantize it (quantize = "nf4"), or leave init_lora_weights out.'
        )
    values, quantized = _original("loftq", weight, original), weight
    a, b = _factors(*_largest(values - quantized.dequantize(), rank, None, None), scaling)
    for _ in range(1, iterations):
        quantized = _requantized(values - np.float32(scaling) * (b @ a), weight)
        a, b = _factors(*_largest(values - quantized.dequantize(), rank, None, None), scaling)
    return Start(a, b, quantized if iterations > 1 else None)


def _original(value: str, weight: QuantizedTensor, original: Callable[[], np.ndarray | None]) -> np.ndarray:
    values = original()
    if values is None:
        raise ConfigError(
            f"init_lora_weights is {value!r}, which needs the weights in full precision, and the base is "
            f"{weight.dtype} as its file has it, whose values stay; give a model in full precision and quantize it to "
            "nf4, or leave init_lora_weights out."
        )
    return values.astype(np.float32)


def _requantized(values: np.ndarray, like: QuantizedTensor) -> QuantizedTensor:
    return QuantizedTensor.quantize(values, like.weight_type, double_quantization=like.double_quantized)


def _largest(
    values: np.ndarray, rank: int, niter: str | None, rng: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U (out, rank), S (rank,) and V^T (rank, in) of the largest singular values; by `niter` subspace iterations."""
    if niter is None or rng is None:
        u, s, vt = np.linalg.svd(values.astype(np.float64), full_matrices=False)
        return u[:, :rank], s[:rank], vt[:rank]
    q = np.linalg.qr(values @ rng.standard_normal((values.shape[1], rank)).astype(np.float32))[0]
    for _ in range(int(niter)):
        q = np.linalg.qr(values @ np.linalg.qr(values.T @ q)[0])[0]
    u, s, vt = np.linalg.svd(q.T @ values, full_matrices=False)
    return q @ u, s, vt


def _factors(u: np.ndarray, s: np.ndarray, vt: np.ndarray, scaling: float) -> tuple[np.ndarray, np.ndarray]:
    """A and B with scaling * B A = U S V^T, the singular values shared out equally."""
    root = np.sqrt(s / scaling)
    return np.ascontiguousarray(root[:, None] * vt, np.float32), np.ascontiguousarray(u * root, np.float32)
