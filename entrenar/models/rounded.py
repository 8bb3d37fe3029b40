"""float32 values as the 16-bit floating-point numbers that files hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from entrenar.errors import FormatError


def rounded(name: str, rows: np.ndarray, dtype: str, start: int = 0) -> np.ndarray:
    """float32 `rows` of the tensor `name`, the first of which is its row `start`, in "float16" or "bfloat16".

    Rounded to the nearest, ties to even. FormatError where a finite value becomes infinite.
    """
    with np.errstate(over="ignore"):
        half = rows.astype(numpy_type(dtype))
    lost = np.isinf(half.astype(np.float32)) & np.isfinite(rows)
    if lost.any():
        place = np.argwhere(lost)[0]
        at = [start + int(place[0]), *map(int, place[1:])]
        raise FormatError(
            f"The tensor {name} is {rows[tuple(place)]:g} at {at}, beyond the largest number of {dtype}; "
            "choose float32 (F32 in a GGUF file)."
        )
    return half


def numpy_type(dtype: str) -> np.dtype[Any]:
    """NumPy's type for "float32", "float16" or "bfloat16"."""
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
