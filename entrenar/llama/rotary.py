"""Rotary frequencies: plain, linear and llama3 scaling, and the scaling that a file's factors amount to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

CONVENTIONAL_CONTEXTS = (8192, 4096, 2048, 16384, 32768, 65536, 131072)  # of llama3 scaling, with factors 1 and 4
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
    factor = float(scaling["factor"])
    if scaling.get("rope_type", scaling.get("type")) == "linear":
        return frequencies / factor
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequencies / factor * (1 - blend) + frequencies * blend


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
    blended = (factors > 1 + SAME) & (factors < factor * (1 - SAME))
    if blended.sum() >= 2:
        # 1 / factors = (1 - blend) / factor + blend, and blend is linear in the frequency
        frequencies = inverse_frequencies(2 * len(factors), theta, None)[blended]
        blend = (1 / factors[blended] - 1 / factor) / (1 - 1 / factor)
        slope, offset = np.polyfit(frequencies, blend, 1)
        if slope > 0 > offset:
            high = round(float(1 - 1 / offset), 4)
            context = round(float(slope) * 2 * math.pi * (high - 1))
            yield llama3 | {"high_freq_factor": high, "original_max_position_embeddings": context}
