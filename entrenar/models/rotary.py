"""Rotary frequencies: plain, linear and llama3 scaling, and the scaling that a file's factors amount to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

SCALING_KEYS = {  # the types of scaling, with the numbers that each takes
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
CONVENTIONAL_CONTEXTS = (8192, 4096, 2048, 16384, 32768, 65536, 131072)  # of llama3 scaling, with factors 1 and 4
HIGH_FACTORS = (4, *(high for high in range(2, 33) if high != 4))
SAME = 1e-6  # factors are stored in float32: frequencies nearer than this are the same


def inverse_frequencies(
    head_dim: int, theta: float, scaling: Mapping[str, Any] | None, factors: Sequence[float] | None = None
) -> np.ndarray:
    """Frequencies (head_dim / 2,), float64.

    Su et al., "RoFormer", 2021 (arXiv 2104.09864); `factors` divide them one by one; "linear" divides them by a factor;
    "llama3" divides the long wavelengths, keeps the short ones and blends between (Meta's Llama 3.1 reference).
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    frequencies = theta**-exponents
    if factors is not None:
        frequencies = frequencies / np.asarray(factors)
    if scaling is None:
        return frequencies
    if scaling.get("rope_type", scaling.get("type")) == "linear":
        return frequencies / float(scaling["factor"])
    return frequencies / llama3_factors(frequencies, scaling)


def llama3_factors(frequencies: np.ndarray, scaling: Mapping[str, Any]) -> np.ndarray:
    """The divisors of plain frequencies under llama3 scaling, in float32 as GGUF files hold them: the same bits."""
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - blend) / float(scaling["factor"]) + blend)).astype(np.float32)


def largest_angle(head_dim: int, theta: float, divisor: float, positions: int) -> float:
    """The largest angle, or a bound of it, where frequencies are divided by `divisor` or more; nothing is allocated."""
    with np.errstate(over="ignore"):
        return float(max(1.0, np.float64(theta) ** -((head_dim - 2) / head_dim)) / np.float64(divisor) * positions)


def scaling_of_factors(factors: Sequence[float], theta: float) -> dict[str, Any] | None:
    """The rope_scaling of config.json that divides the frequencies by these factors; {} for none, None where none does.

    GGUF files of Llama 3.1 and later hold the divisors that llama3 scaling came to when they were made.
    """
    wanted = inverse_frequencies(2 * len(factors), theta, None, factors)
    for scaling in _candidates(np.asarray(factors, np.float64), theta):
        found = inverse_frequencies(2 * len(factors), theta, scaling or None)
        if np.abs(found / wanted - 1).max() <= SAME:
            return scaling
    return None


def _candidates(factors: np.ndarray, theta: float) -> Iterator[dict[str, Any]]:
    """Scalings to try: none, linear, llama3 as it is published, llama3 as it fits the blended factors."""
    yield {}
    factor = round(float(factors.max()), 6)
    yield {"rope_type": "linear", "factor": factor}
    llama3 = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    for context in CONVENTIONAL_CONTEXTS:
        yield llama3 | {"original_max_position_embeddings": context}
    for high in HIGH_FACTORS:
        found = _context(factors, factor, theta, high)
        if found is not None:
            yield llama3 | {"high_freq_factor": float(high), "original_max_position_embeddings": found}
    frequencies, blend = _blended(factors, factor, theta)
    if len(blend) >= 2:
        slope, offset = np.polyfit(frequencies, blend, 1)
        if slope > 0 > offset:
            bound = round(float(1 - 1 / offset), 4)
            turns = float(slope) * 2 * math.pi * (bound - 1)
            yield llama3 | {"high_freq_factor": bound, "original_max_position_embeddings": round(turns)}


def _blended(factors: np.ndarray, factor: float, theta: float) -> tuple[np.ndarray, np.ndarray]:
    """The frequencies between kept and divided ones, and how far each is kept: it is linear in the frequency."""
    between = (factors > 1 + SAME) & (factors < factor * (1 - SAME))
    # 1 / factors = (1 - blend) / factor + blend
    blend = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
    return inverse_frequencies(2 * len(factors), theta, None)[between], blend


def _context(factors: np.ndarray, factor: float, theta: float, high: int) -> int | None:
    """The original context with bounds of 1 and `high` turns: from a blended frequency, else between the others."""
    frequencies, blend = _blended(factors, factor, theta)
    if len(blend):
        return round(float(2 * math.pi * (1 + (high - 1) * blend[0]) / frequencies[0]))
    every = inverse_frequencies(2 * len(factors), theta, None)
    kept, divided = every[factors <= 1 + SAME], every[factors > 1 + SAME]
    if not len(kept) or not len(divided):
        return None
    least, most = 2 * math.pi * high / kept.min(), 2 * math.pi / divided.max()
    return math.ceil(least) if math.ceil(least) <= most else None
