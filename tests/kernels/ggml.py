"""ggml's own encoders and decoders, through the C symbols that xllamacpp's extension exports."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import numpy as np
import pytest

from entrenar.autograd.weight_types import WeightType


@functools.cache
def library() -> ctypes.CDLL:
    package = pytest.importorskip("xllamacpp")
    (path,) = Path(package.__file__).parent.glob("*.abi3.so")
    return ctypes.CDLL(str(path))


def dequantize(raw: np.ndarray, row: WeightType) -> np.ndarray:
    """Rows of blocks (rows, bytes) as float32."""
    name = row.name if row.name.startswith("iq") else "q" + row.name[1:].upper()
    function = library()[f"dequantize_row_{name}"]
    function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    raw = np.ascontiguousarray(raw)
    out = np.empty((len(raw), raw.shape[1] // row.block_bytes * row.block_size), np.float32)
    function(raw.ctypes.data, out.ctypes.data, out.size)
    return out


def quantize(x: np.ndarray, row: WeightType) -> np.ndarray:
    """Blocks (rows, bytes) of float32 rows, without an importance matrix."""
    function = library().ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    x = np.ascontiguousarray(x, np.float32)
    out = np.empty((len(x), row.row_bytes(x.shape[1])), np.uint8)
    function(row.gguf_type, x.ctypes.data, out.ctypes.data, 0, *x.shape, None)
    return out
