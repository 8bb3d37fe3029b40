"""Rotary frequencies: the types of scaling, what each needs, and the scaling that a file's factors amount to.

The rules are those of transformers' `modeling_rope_utils`; what depends on a sequence's length is computed for that
length alone, whatever ran before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from entrenar.config import nearest, shown
from entrenar.errors import ConfigError

ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class ScalingType:
    """What a type of rope_scaling must have, and what it may have; null is the same as absent for the latter."""

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


SCALING_TYPES = {
    "linear": ScalingType(("factor",)),
    "dynamic": ScalingType(("factor",)),
    "llama3": ScalingType(("factor", "low_freq_factor", "high_freq_factor", ORIGINAL)),
    "yarn": ScalingType(
        ("factor", ORIGINAL), ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
    ),
    "longrope": ScalingType(("short_factor", "long_factor", ORIGINAL), ("factor", "attention_factor")),
}
LISTS = ("short_factor", "long_factor")  # a number for each rotated pair
CONVENTIONAL_CONTEXTS = (8192, 4096, 2048, 16384, 32768, 65536, 131072)  # of llama3 scaling, with factors 1 and 4
HIGH_FACTORS = (4, *(high for high in range(2, 33) if high != 4))
SAME = 1e-6  # factors are stored in float32: frequencies nearer than this are the same


@dataclass(frozen=True)
class RotaryAngles:
    """Radians a position of each pair, (rotated / 2,) in float64, and what cosines and sines are multiplied by."""

    frequencies: np.ndarray
    scale: float = 1.0


def is_positive(value: Any) -> bool:
    """Whether this is a number above 0 that arithmetic can hold."""
    return not isinstance(value, bool) and isinstance(value, int | float) and 0 < value < 2**63


def checked_scaling(scaling: Mapping[str, Any], rotated: int, theta: float) -> dict[str, Any] | None:
    """rope_scaling with the keys of its type alone, None where it scales nothing.

    Raises ConfigError for an unknown type, a missing key and numbers that make no frequencies of `rotated` dimensions.
    """
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in (None, "default"):
        return None
    if not isinstance(kind, str) or kind not in SCALING_TYPES:
        raise ConfigError(
            f"model.rope_scaling: type {shown(kind)} is not supported; {nearest(str(kind), SCALING_TYPES)}"
        )
    row = SCALING_TYPES[kind]
    given = {key: scaling[key] for key in row.optional if scaling.get(key) is not None}
    given = {key: scaling.get(key) for key in row.needed} | given
    for key, value in given.items():
        if key in LISTS:
            if not isinstance(value, list) or len(value) != rotated // 2 or not all(map(is_positive, value)):
                raise ConfigError(
                    f"model.rope_scaling.{key} is {shown(value)}, expected {rotated // 2} positive numbers, one for "
                    "each rotated pair."
                )
        elif key == "truncate":
            if not isinstance(value, bool):
                raise ConfigError(f"model.rope_scaling.truncate is {shown(value)}, expected true or false.")
        elif not is_positive(value):
            raise ConfigError(f"model.rope_scaling.{key} is {shown(value)}, expected a positive number.")
    _check_ranges(kind, given, rotated, theta)
    return {"rope_type": kind, **given}


def _check_ranges(kind: str, given: Mapping[str, Any], rotated: int, theta: float) -> None:
    for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
        bounds = {"beta_slow": 1, "beta_fast": 32} if kind == "yarn" else {}
        bounds |= {key: given[key] for key in (low, high) if key in given}
        if high in bounds and not bounds[high] > bounds[low]:
            raise ConfigError(
                f"model.rope_scaling.{high} is {shown(bounds[high])}, expected more than {low} = {shown(bounds[low])}."
            )
    if kind == "yarn" and theta <= 1:
        raise ConfigError(f"model.rope_theta is {shown(theta)}, expected more than 1 where rope_scaling is yarn.")
    if kind == "longrope" and given[ORIGINAL] < 2:
        raise ConfigError(f"model.rope_scaling.{ORIGINAL} is {shown(given[ORIGINAL])}, expected at least 2.")
    if kind == "dynamic" and rotated < 4:
        raise ConfigError(f"model.rope_scaling is dynamic, expected at least 4 rotated dimensions, not {rotated}.")


def context_of(scaling: Mapping[str, Any] | None, context: int) -> int:
    """The longest sequence: max_position_embeddings, or what dynamic and yarn scaling stretch it to."""
    scaling = scaling or {"rope_type": None}
    kind = scaling["rope_type"]
    if kind == "dynamic":  # whose context is the one before scaling
        return max(context, int(context * scaling["factor"]))
    if kind == "yarn":
        return max(context, int(scaling[ORIGINAL] * scaling["factor"]))
    return context


def span(scaling: Mapping[str, Any] | None, context: int, length: int) -> int:
    """The shortest sequence that is rotated as one of `length` positions is; 0 where all are rotated alike."""
    scaling = scaling or {"rope_type": None}
    kind = scaling["rope_type"]
    if kind == "dynamic":
        return max(length, context)
    if kind == "longrope":
        return int(scaling[ORIGINAL]) + 1 if length > scaling[ORIGINAL] else 0
    return 0


def rotation(
    rotated: int,
    theta: float,
    scaling: Mapping[str, Any] | None,
    factors: Sequence[float] | None = None,
    *,
    context: int = 0,
    length: int = 0,
) -> RotaryAngles:
    """The rotation of a sequence of `length` positions in a model with this max_position_embeddings.

    Su et al., "RoFormer", 2021 (arXiv 2104.09864); `factors` divide frequencies one by one; "linear" divides them by a
    factor; "dynamic" raises the base with the length beyond the context (NTK); "llama3" divides the long wavelengths,
    keeps the short ones and blends between (Meta's Llama 3.1 reference); "yarn" blends by turns within the original
    context and scales attention (Peng et al., 2023, arXiv 2309.00071); "longrope" has divisors for lengths up to the
    original context and others beyond (Ding et al., 2024, arXiv 2402.13753).
    """
    scaling = scaling or {"rope_type": None}
    kind = scaling["rope_type"]
    if kind == "dynamic":
        factor, longest = float(scaling["factor"]), max(length, context)
        theta *= (factor * longest / context - (factor - 1)) ** (rotated / (rotated - 2))
    frequencies = theta ** -(np.arange(0, rotated, 2, dtype=np.float64) / rotated)
    if factors is not None:
        frequencies = frequencies / np.asarray(factors)
    if kind == "linear":
        return RotaryAngles(frequencies / float(scaling["factor"]))
    if kind == "llama3":
        return RotaryAngles(frequencies / llama3_factors(frequencies, scaling))
    if kind == "yarn":
        return RotaryAngles(_yarn(frequencies, rotated, theta, scaling), attention_factor(scaling, context))
    if kind == "longrope":
        divisors = scaling["long_factor" if length > scaling[ORIGINAL] else "short_factor"]
        return RotaryAngles(frequencies / np.asarray(divisors, np.float32), attention_factor(scaling, context))
    return RotaryAngles(frequencies)


def inverse_frequencies(
    rotated: int, theta: float, scaling: Mapping[str, Any] | None, factors: Sequence[float] | None = None
) -> np.ndarray:
    """Frequencies (rotated / 2,), float64, that do not depend on a length."""
    return rotation(rotated, theta, scaling, factors).frequencies


def llama3_factors(frequencies: np.ndarray, scaling: Mapping[str, Any]) -> np.ndarray:
    """The divisors of plain frequencies under llama3 scaling, in float32 as GGUF files hold them: the same bits."""
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    turns = scaling[ORIGINAL] * frequencies / (2 * math.pi)
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 / ((1 - blend) / float(scaling["factor"]) + blend)).astype(np.float32)


def _yarn(frequencies: np.ndarray, rotated: int, theta: float, scaling: Mapping[str, Any]) -> np.ndarray:
    """Keep what turns beta_fast times within the original context, divide what turns beta_slow times, blend between."""

    def pair(turns: float) -> float:  # the pair, times 2, that turns so often
        return rotated * math.log(scaling[ORIGINAL] / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(scaling.get("beta_fast", 32)), pair(scaling.get("beta_slow", 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    if low == high:
        high += 0.001
    divided = np.clip((np.arange(rotated // 2) - low) / (high - low), 0.0, 1.0)
    return np.asarray(frequencies / float(scaling["factor"]) * divided + frequencies * (1 - divided))


def yarn_magnitude(factor: float, weight: float = 1.0) -> float:
    """What YaRN multiplies cosines and sines by where nothing else is said (its 0.1 ln s + 1)."""
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def attention_factor(scaling: Mapping[str, Any], context: int) -> float:
    """What yarn and longrope scaling multiply cosines and sines by, a float32 as GGUF files hold it."""
    scale, original = 1.0, scaling[ORIGINAL]
    if "attention_factor" in scaling:
        scale = scaling["attention_factor"]
    elif scaling["rope_type"] == "longrope":
        factor = scaling.get("factor", context / original)
        scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    elif "mscale" in scaling and "mscale_all_dim" in scaling:
        above, below = (yarn_magnitude(scaling["factor"], scaling[key]) for key in ("mscale", "mscale_all_dim"))
        scale = above / below
    else:
        scale = yarn_magnitude(scaling["factor"])
    return float(np.float32(scale))


def smallest_divisor(scaling: Mapping[str, Any] | None) -> float:
    """The least that any frequency is divided by."""
    scaling = scaling or {"rope_type": None}
    kind = scaling["rope_type"]
    if kind == "longrope":
        return float(min(*scaling["short_factor"], *scaling["long_factor"]))
    return 1.0 if kind in (None, "dynamic") else float(scaling["factor"])


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
