"""Products of few rows, but more than gemv takes: the weight's own integers are moved to the micro-panel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import entrenar
from entrenar import autograd
from entrenar._kernels import cpu
from entrenar.autograd import QuantizedTensor
from entrenar.autograd.weight_types import WEIGHT_TYPES

from .cases.weights import FROZEN, frozen_weight, scales_at, whole_blocks
from .products import normal, relative_error

QUANTIZED = [name for name in FROZEN if name not in ("bfloat16", "float16")]
ROWS = (9, 13, 21, 28, 48)  # of x: in and beyond what gemv takes, whole and part micro-panels, the most
every_quantized_type = pytest.mark.parametrize("weight_type", QUANTIZED)


@pytest.mark.unit
@pytest.mark.parametrize("precision", ["high", "medium"])
@every_quantized_type
def test_products_of_few_rows_are_close(weight_type: str, precision: str, tier: str, threads: None) -> None:
    """The weight is exact, unless its values are rounded to integers (nf4), and x has 15 bits of a step's largest."""
    for m, (n, columns) in itertools.product(ROWS, ((64, 96), (70, 576), (37, 1536))):
        k = whole_blocks(weight_type, columns)
        weight, values = frozen_weight(weight_type, n, k)
        (x,) = normal(20, (m, k))
        x[:, ::7] *= 100
        bits = set()
        for count in (1, 2, 3):
            cpu.set_num_threads(count)
            with entrenar.matmul_precision(precision):
                y = autograd.linear(x, weight).numpy()
            bits.add(y.tobytes())
        assert len(bits) == 1
        exact = tier != "base" and not weight_type.startswith("nf4")  # base has no integers of few rows
        assert relative_error(y, x.astype(np.float64) @ values.T) < (1e-4 if exact else 3e-4)


@pytest.mark.unit
@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize("weight_type", ["int16", "nf4", "q8_0", "q4_1"])
def test_the_largest_integers_of_few_rows_do_not_wrap_around(weight_type: str, m: int, tier: str) -> None:
    for sign in (1, -1):
        weight = QuantizedTensor.quantize(np.full((70, 192), sign, np.float32), weight_type)
        with entrenar.matmul_precision("high"):
            y = autograd.linear(np.full((m, 192), 5, np.float32), weight).numpy()
        np.testing.assert_allclose(y, sign * 960.0, rtol=2e-3)


@pytest.mark.unit
@pytest.mark.parametrize("weight_type", [row.name for row in WEIGHT_TYPES.values() if row.block_size == 256])
def test_the_largest_blocks_of_few_rows_do_not_wrap_around(weight_type: str, tier: str) -> None:
    row = WEIGHT_TYPES[weight_type]
    for fill, scale in itertools.product((0xFF, 0x80, 0x00), (1.0, -1.0)):
        raw = np.full((70, 4 * row.block_bytes), fill, np.uint8)
        for at in scales_at(row):
            raw.reshape(-1, row.block_bytes)[:, at : at + 2] = np.array([scale], "<f2").view(np.uint8)
        weight = QuantizedTensor.from_gguf_blocks(raw, weight_type, (70, 1024))
        values = weight.dequantize().astype(np.float64)
        for x in (np.full((25, 1024), 5, np.float32), *normal(22, (25, 1024))):
            with entrenar.matmul_precision("high"):
                y = autograd.linear(x, weight).numpy()
            largest = np.abs(values).max() * np.linalg.norm(x, axis=1).max() * 32
            np.testing.assert_allclose(y, x.astype(np.float64) @ values.T, rtol=0, atol=1e-4 * largest)


@pytest.mark.unit
@every_quantized_type
def test_few_rows_keep_zeros_and_what_is_no_number(weight_type: str, tier: str) -> None:
    k = whole_blocks(weight_type, 192)
    weight, _ = frozen_weight(weight_type, 70, k)
    with entrenar.matmul_precision("high"):
        assert not autograd.linear(np.zeros((25, k), np.float32), weight).numpy().any()
        for m, bad in itertools.product((9, 25), (np.nan, np.inf, -np.inf)):
            (x,) = normal(21, (m, k))
            before = autograd.linear(x, weight).numpy().copy()
            x[m - 1, 100] = bad
            after = autograd.linear(x, weight).numpy()
            assert not np.isfinite(after[m - 1]).any()
            np.testing.assert_array_equal(after[:-1], before[:-1])


@pytest.mark.unit
@pytest.mark.parametrize("weight_type", ["q4_1", "q6_k", "float32"])
def test_a_row_is_the_same_beside_others(weight_type: str, tier: str) -> None:
    """In fp32 up to what gemv takes, so that an answer does not depend on who asks at the same time."""
    k = whole_blocks(weight_type, 192)
    weight, _ = frozen_weight(weight_type, 70, k)
    (x,) = normal(23, (8, k))
    alone = [autograd.linear(x[i : i + 1], weight).numpy()[0] for i in range(8)]
    for m in range(2, 9):
        np.testing.assert_array_equal(autograd.linear(x[:m], weight).numpy(), np.stack(alone[:m]))
